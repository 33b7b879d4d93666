# The image of servers and workers: Tablebay's wheel on a plain Python.
#   docker build -t localhost/tablebay:dev .
# BASE may be any Debian image that has Python 3.11 or later as `python`.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Which commit the image is of; there is no git folder in the context.
ARG COMMIT=
ENV TABLEBAY_COMMIT=${COMMIT}
# The wheel and all that it needs, at the versions that are tested.
RUN python -m pip wheel --no-cache-dir --constraint constraints.txt --wheel-dir /wheels .

FROM ${BASE}
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    python -m pip install --no-cache-dir --no-index --find-links /wheels tablebay
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
WORKDIR /tmp
ENV PYTHONUNBUFFERED=1
EXPOSE 7070 7071 7072
CMD ["tablebay-server"]
