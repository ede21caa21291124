# Image for training on NVIDIA GPUs. From the root of the repository:
#
#   docker build --file=scripts/docker/train-gpu.Dockerfile --tag=synthjax-train .
#   docker run --gpus=all --shm-size=4g --volume="$PWD/DATA:/workspace/data:ro" \
#     --volume="$PWD/runs:/workspace/runs" synthjax-train \
#     python -m synthjax.train --config=configs/flow_100k.py --workdir=/workspace/runs/flow_100k \
#     --config.data.root=/workspace/data
#
# Processes that read batches hand them over in shared memory: without --shm-size, Docker allows 64 MB of it.
#
# CUDA 13 comes with JAX's wheels. The host needs driver 580 or newer and the NVIDIA Container Toolkit. For a newer base
# image, docker buildx imagetools inspect python:3.12-slim-bookworm prints its digest; change both Dockerfiles.
FROM python:3.12.14-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254 AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /opt/synthjax
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# Requirements change less often than the code, so they are a layer of their own, which need not be pushed again.
COPY pyproject.toml requirements-gpu.txt scripts/docker/dependencies.py ./
RUN python dependencies.py gcs s3 wandb > dependencies.txt \
    && grep '^jax' requirements-gpu.txt >> dependencies.txt \
    && pip install --no-cache-dir --requirement=dependencies.txt

FROM python:3.12.14-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254
LABEL org.opencontainers.image.title="synthjax training" \
      org.opencontainers.image.licenses="MIT"
# OVHcloud always runs jobs as this user.
RUN groupadd --gid=42420 synthjax \
    && useradd --uid=42420 --gid=42420 --home-dir=/workspace --create-home synthjax
# Read by the NVIDIA Container Toolkit.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HOME=/workspace \
    PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1
COPY --from=build /opt/venv /opt/venv
WORKDIR /opt/synthjax
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY configs configs
COPY data_pipeline data_pipeline
COPY synthjax synthjax
RUN pip install --no-cache-dir --no-deps --editable .
USER 42420:42420
# No entry point: services that run the image take it for one that they must replace.
CMD ["python", "-m", "synthjax.train", "--help"]
