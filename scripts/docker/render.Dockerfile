# Image for rendering data sets with Surge XT. From the root of the repository:
#
#   docker build --file=scripts/docker/render.Dockerfile --tag=synthjax-render .
#   docker run --user="$(id -u):$(id -g)" --volume="$PWD/DATA:/workspace/data" synthjax-render \
#     python -m data_pipeline.render_shards --config=configs/render_surge_simple.py --output=/workspace/data/shards \
#     --shards=0-11
#
# The image contains Surge XT and pedalboard, which are free software under the GNU GPL version 3, and synthjax,
# which is MIT. If you pass the image on, you must offer the sources of those two as the GPL says.
FROM python:3.12.14-slim-bookworm@sha256:782412e85d0f0984994c290652577d4018aff08145c85b262bb63dc0c7522254
LABEL org.opencontainers.image.title="synthjax rendering with Surge XT and pedalboard" \
      org.opencontainers.image.licenses="MIT AND GPL-3.0-only" \
      synthjax.gpl="Surge XT and pedalboard, both under the GNU GPL version 3, are part of this image"
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Libraries that Surge XT's own package depends on, and programs that its installer uses. The digest above fixes the
# distribution; its newest packages are installed, for their security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates curl libcairo2 libfontconfig1 libfreetype6 \
        libx11-6 libxcb1 libxcb-cursor0 libxcb-util1 libxcb-xkb1 libxkbcommon0 libxkbcommon-x11-0 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid=42420 synthjax \
    && useradd --uid=42420 --gid=42420 --home-dir=/workspace --create-home synthjax
ENV HOME=/workspace \
    PYTHONUNBUFFERED=1
WORKDIR /opt/synthjax
COPY scripts/install_surge_xt.sh scripts/
# Checks the release's sum, and fails if a library is missing.
RUN sh scripts/install_surge_xt.sh
COPY pyproject.toml scripts/docker/dependencies.py ./
# Rendering needs neither JAX nor the packages that build on it.
RUN python dependencies.py --without=jax,flax,optax,orbax-checkpoint,grain,jaxtyping gcs render s3 > dependencies.txt \
    && pip install --no-cache-dir --requirement=dependencies.txt
COPY README.md LICENSE NOTICE ./
COPY configs configs
COPY data_pipeline data_pipeline
COPY synthjax synthjax
COPY scripts/common.sh scripts/render_to_bucket.sh scripts/
RUN pip install --no-cache-dir --no-deps --editable .
USER 42420:42420
CMD ["python", "-m", "data_pipeline.render_shards", "--help"]
