{{/* Name of the operator's objects. A release's name has at most 53 characters. */}}
{{- define "tablebay.fullname" -}}
{{- .Values.fullnameOverride | default (printf "%s-operator" .Release.Name) -}}
{{- end }}

{{/* What selects the operator's pods: never changes, because a Deployment's selector cannot. */}}
{{- define "tablebay.selectorLabels" -}}
app.kubernetes.io/name: tablebay
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{/* Labels of every object but what has a component of its own. */}}
{{- define "tablebay.commonLabels" -}}
app.kubernetes.io/name: tablebay
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: tablebay
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "tablebay.labels" -}}
{{ include "tablebay.commonLabels" . }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "tablebay.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end }}

{{/* The servers' image: what serverImage leaves out is the operator's. */}}
{{- define "tablebay.serverImage" -}}
{{- $image := mergeOverwrite (deepCopy .Values.image) .Values.serverImage -}}
{{ $image.repository }}:{{ $image.tag }}
{{- end }}

{{- define "tablebay.serverPullPolicy" -}}
{{ .Values.serverImage.pullPolicy | default .Values.image.pullPolicy }}
{{- end }}

{{/* A namespace whose jobs this operator runs: the release's if it is one of them. */}}
{{- define "tablebay.jobNamespace" -}}
{{- if or (not .Values.watchNamespaces) (has .Release.Namespace .Values.watchNamespaces) -}}
{{ .Release.Namespace }}
{{- else -}}
{{ first .Values.watchNamespaces }}
{{- end -}}
{{- end }}

{{/* Of a pod: what the restricted Pod Security Standard wants. The number is the Dockerfile's USER. */}}
{{- define "tablebay.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "tablebay.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
  - ALL
{{- end }}

{{/* The operator's rights on jobs and on what it makes of them. */}}
{{- define "tablebay.rules" -}}
- apiGroups:
  - tablebay.dev
  resources:
  - trainingjobs
  verbs: [get, list, watch, patch, delete]
- apiGroups:
  - tablebay.dev
  resources:
  - trainingjobs/status
  verbs: [patch]
- apiGroups:
  - apps
  resources:
  - statefulsets
  verbs: [get, list, watch, create, patch, delete]
- apiGroups:
  - batch
  resources:
  - jobs
  verbs: [get, list, watch, create, patch, delete]
- apiGroups:
  - ""
  resources:
  - services
  verbs: [get, list, watch, create, patch, delete]
- apiGroups:
  - ""
  resources:
  - serviceaccounts
  verbs: [get, list, watch, create, patch]
- apiGroups:
  - policy
  resources:
  - poddisruptionbudgets
  verbs: [get, list, watch, create, patch, delete]
- apiGroups:
  - networking.k8s.io
  resources:
  - networkpolicies
  verbs: [get, list, watch, create, patch, delete]
- apiGroups:
  - ""
  resources:
  - persistentvolumeclaims
  verbs: [get, create]
# Of jobs' certificates, by their names; neither listed nor watched, so none is found that was not known.
- apiGroups:
  - ""
  resources:
  - secrets
  verbs: [get, create, patch]
- apiGroups:
  - ""
  resources:
  - pods
  verbs: [list, watch, patch, delete]
- apiGroups:
  - ""
  resources:
  - events
  verbs: [create]
- apiGroups:
  - monitoring.coreos.com
  resources:
  - podmonitors
  verbs: [get, list, watch, create, patch, delete]
{{- with .Values.gang.scheduler }}
- apiGroups:
{{- if eq . "Kueue" }}
  - kueue.x-k8s.io
  resources:
  - workloads
  verbs: [list, patch]
{{- else }}
  - {{ if eq . "Volcano" }}scheduling.volcano.sh{{ else }}scheduling.x-k8s.io{{ end }}
  resources:
  - podgroups
  verbs: [get, list, watch, create, patch, delete]
{{- end }}
{{- end }}
{{- end }}
