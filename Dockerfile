# One image for every node of a cluster: head, workers, submitter.
#   docker build -t stylize-batch:cpu .                              # for machines without a GPU
#   docker build -t stylize-batch:cuda --build-arg DEVICE=cuda .     # with PyTorch's CUDA build, 4 GB more
# Ray and Python must be the same on all nodes; RAY pins the one, PYTHON the other.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS build
ARG DEVICE=cpu
ARG RAY=2.60.0
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY pipeline pipeline
# By itself pip takes PyTorch's CUDA build; the one for CPUs, marked +cpu, goes before it where both are offered.
RUN case "$DEVICE" in \
      cpu) more="--extra-index-url https://download.pytorch.org/whl/cpu" ;; \
      cuda) more= ;; \
      *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 2 ;; \
    esac \
    && pip install --no-cache-dir --prefix=/install $more ".[cluster]" "ray==$RAY"

FROM python:${PYTHON}-slim
ARG DEVICE=cpu
# Kubernetes asks Ray's nodes for their health with wget. Triton compiles what launches a kernel with gcc.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes wget $([ "$DEVICE" != cuda ] || echo gcc libc6-dev) \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray
# Into the system's Python, whose folder is in the PATH of login shells too: KubeRay starts Ray from one.
COPY --from=build /install /usr/local
# The NVIDIA runtime gives a container its GPUs when it asks for them.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility RAY_USAGE_STATS_ENABLED=0
USER 1000
WORKDIR /home/ray
CMD ["stylize-batch", "--help"]
