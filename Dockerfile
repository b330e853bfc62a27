# The pipeline on a CUDA machine:
#   docker build -t rl4rec .
#   docker run --gpus all -v "$PWD:/workspace" -e RL4REC_DATA_HOME=/workspace/raw rl4rec dvc repro
# Any Debian/Ubuntu base with Python 3.11 or newer does. On CPUs only, with the small CPU build of torch:
#   docker build -t rl4rec --build-arg BASE_IMAGE=ubuntu:24.04 \
#       --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu .
# Behind a mirror or a proxy with its own certificates: --secret id=pip,src=pip.conf --secret id=ca,src=ca.pem, where
# pip.conf says `cert = /run/secrets/ca`; neither stays in a layer. `.ci/image` builds and tries it without an engine.
# torch's wheels bring the CUDA libraries, the base brings what lets the driver in.
ARG BASE_IMAGE=nvidia/cuda:13.0.1-base-ubuntu24.04

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG DEBIAN_FRONTEND=noninteractive
ENV PIP_DISABLE_PIP_VERSION_CHECK=1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/rl4rec
# The pinned versions first: a change of the code does not install them again.
COPY pyproject.toml LICENSE ./
COPY rl4rec/__init__.py rl4rec/__init__.py
ARG PIP_EXTRA_INDEX_URL
# hadolint ignore=DL3013 # pyproject.toml pins them
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=secret,id=ca \
    --mount=type=cache,target=/root/.cache/pip \
    pip install '.[server,train]'

# hadolint ignore=DL3006
FROM ${BASE_IMAGE}
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ARG DEBIAN_FRONTEND=noninteractive
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 git ca-certificates \
    && rm -rf /var/lib/apt/lists/* \
    && git config --system --add safe.directory '*' \
    && install -d -o 1000 -g 1000 /artifacts
COPY --from=build /opt/venv /opt/venv
WORKDIR /workspace
COPY --chown=1000:1000 . .
# Without a mounted checkout there is no git repository here; the code that runs is always that of /workspace.
RUN printf '[core]\n    no_scm = true\n' > .dvc/config.local && chown 1000:1000 . .dvc .dvc/config.local
# LOGNAME: DVC asks for the user's name, and no base need know 1000 (nor what `docker run --user` says).
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/workspace \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    LOGNAME=rl4rec \
    MLFLOW_DISABLE_TELEMETRY=true \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DVC_NO_ANALYTICS=1
USER 1000:1000
CMD ["dvc", "repro"]
