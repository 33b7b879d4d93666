{{/*
What can be wrong in the cluster before anything is installed. `lookup` finds nothing under `helm template` and
`--dry-run=client`, so there nothing is refused.
*/}}
{{- define "tablebay.preflight" -}}
{{- if .Values.preflight -}}
{{- include "tablebay.preflight.namespace" . -}}
{{- include "tablebay.preflight.watch" . -}}
{{- include "tablebay.preflight.crd" . -}}
{{- end -}}
{{- end }}

{{/* A second release in one namespace. */}}
{{- define "tablebay.preflight.namespace" -}}
{{- range (lookup "apps/v1" "Deployment" .Release.Namespace "").items -}}
{{- $labels := .metadata.labels | default dict -}}
{{- $other := get $labels "app.kubernetes.io/instance" -}}
{{- if and (eq (get $labels "app.kubernetes.io/name") "tablebay") (eq (get $labels "app.kubernetes.io/component") "operator") (ne $other $.Release.Name) -}}
{{- fail (printf "\n\nTablebay is already in namespace %s, as release %s. Two operators there are refused.\nTo change it:   helm upgrade %s CHART -n %s\nTo replace it:  helm uninstall %s -n %s, and install again\n" $.Release.Namespace $other $other $.Release.Namespace $other $.Release.Namespace) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A second operator for the same jobs, wherever it runs. */}}
{{- define "tablebay.preflight.watch" -}}
{{- include "tablebay.preflight.bindings" (list . "ClusterRoleBinding" "") -}}
{{- range .Values.watchNamespaces | default (list "") -}}
{{- include "tablebay.preflight.bindings" (list $ "RoleBinding" .) -}}
{{- end -}}
{{- end }}

{{- define "tablebay.preflight.bindings" -}}
{{- $root := index . 0 -}}
{{- range (lookup "rbac.authorization.k8s.io/v1" (index . 1) (index . 2) "").items -}}
{{- $labels := .metadata.labels | default dict -}}
{{- $annotations := .metadata.annotations | default dict -}}
{{- $release := get $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" -}}
{{- if and (eq (get $labels "app.kubernetes.io/name") "tablebay") (eq (get $labels "app.kubernetes.io/component") "operator") (or (ne $release $root.Release.Name) (ne $namespace $root.Release.Namespace)) -}}
{{- fail (printf "\n\nRelease %s in namespace %s already runs the TrainingJobs of %s.\nA job has one operator: give each release namespaces of its own with watchNamespaces, or uninstall one.\n" $release $namespace (.metadata.namespace | default "all namespaces")) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{/* A TrainingJob definition that is missing, older or newer than the operator, or not this release's to change. */}}
{{- define "tablebay.preflight.crd" -}}
{{- $crd := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" "trainingjobs.tablebay.dev" -}}
{{- $apply := "helm template tablebay CHART --show-only templates/crd.yaml | kubectl apply --server-side --force-conflicts -f -" -}}
{{- if $crd -}}
{{- $annotations := $crd.metadata.annotations | default dict -}}
{{- $found := get $annotations "tablebay.dev/version" -}}
{{- $known := regexMatch "^[0-9]+\\.[0-9]+\\.[0-9]+([-+].*)?$" $found -}}
{{- if .Values.crds.install -}}
{{- $release := get $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" -}}
{{- if or (ne $release .Release.Name) (ne $namespace .Release.Namespace) -}}
{{- $owner := ternary (printf "release %s in namespace %s" $release $namespace) "no release" (ne $release "") -}}
{{- fail (printf "\n\nThe cluster has the definition trainingjobs.tablebay.dev already; it belongs to %s.\nTo use it as it is:  --set crds.install=false\nTo take it over:     kubectl annotate --overwrite crd trainingjobs.tablebay.dev meta.helm.sh/release-name=%s meta.helm.sh/release-namespace=%s && kubectl label --overwrite crd trainingjobs.tablebay.dev app.kubernetes.io/managed-by=Helm\n" $owner .Release.Name .Release.Namespace) -}}
{{- end -}}
{{- if $known -}}
{{- if gt ((semver $found).Compare (semver .Chart.AppVersion)) 0 -}}
{{- fail (printf "\n\nThe definition trainingjobs.tablebay.dev is of version %s, this chart of %s. An older definition would drop fields of the jobs there.\nInstall a chart of %s or later, or keep the newer definition with --set crds.install=false\n" $found .Chart.AppVersion $found) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- $older := true -}}
{{- if $known -}}{{- $older = lt ((semver $found).Compare (semver .Chart.AppVersion)) 0 -}}{{- end -}}
{{- if $older -}}
{{- fail (printf "\n\nThe definition trainingjobs.tablebay.dev is of version %s, older than this operator, %s: the operator would find fields that it lacks.\nBring it up to date first:\n  %s\nor let the chart do it with --set crds.install=true\n" ($found | default "unknown") .Chart.AppVersion $apply) -}}
{{- end -}}
{{- end -}}
{{- else if and (not .Values.crds.install) (.Capabilities.APIVersions.Has "apiregistration.k8s.io/v1") (not (.Capabilities.APIVersions.Has "tablebay.dev/v1alpha1/TrainingJob")) -}}
{{- /* A cluster answers, since every one has apiregistration.k8s.io, and it knows no TrainingJob. */ -}}
{{- fail (printf "\n\nThe cluster lacks the definition trainingjobs.tablebay.dev, and crds.install is false. Apply it first:\n  %s\nor let the chart do it with --set crds.install=true\n" $apply) -}}
{{- end -}}
{{- end }}
