# The image of operator, servers and workers: Tablebay's wheel on a plain Python.
#   docker build -t localhost/tablebay:dev .
# BASE may be any Debian image that has Python 3.11 or later as `python`.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
# What the base lacks of a compiler and of Python's headers.
RUN packages=; \
    command -v g++ >/dev/null || packages="g++"; \
    [ -f "$(python -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] \
      || packages="$packages python3-dev"; \
    [ -z "$packages" ] \
      || { apt-get update && apt-get install --yes --no-install-recommends $packages && rm -rf /var/lib/apt/lists/*; }
RUN python -m venv /opt/tablebay
WORKDIR /src
# What it needs, at the versions that are tested: a layer that a change of the sources leaves alone.
COPY pyproject.toml constraints.txt ./
RUN python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*project["dependencies"], *project["optional-dependencies"]["operator"], sep="\n")' > requirements.txt \
 && /opt/tablebay/bin/python -m pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY . .
# Which commit the image is of; there is no git folder in the context.
ARG COMMIT=
RUN TABLEBAY_COMMIT="$COMMIT" /opt/tablebay/bin/python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
 && /opt/tablebay/bin/python -m pip install --no-cache-dir --no-deps /wheels/*.whl

FROM ${BASE}
COPY --from=build /opt/tablebay /opt/tablebay
# Some libraries want to know the user's name.
RUN echo 'tablebay:x:65532:65532::/tmp:/usr/sbin/nologin' >> /etc/passwd
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
WORKDIR /tmp
ENV PATH=/opt/tablebay/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 7070 7071 7072
CMD ["tablebay-server"]
