# One image for every node of a cluster: head, workers, submitter.
#   docker build -t stylize-batch:cpu .                              # for machines without a GPU
#   docker build -t stylize-batch:cuda --build-arg DEVICE=cuda .     # with PyTorch's CUDA build, 4 GB more
# Ray refuses a node with another Ray, or another Python down to the patch version: RAY and PYTHON pin both, so that an
# image built later still joins. PYTHON is 3.11 or newer.
ARG PYTHON=3.11.16

FROM python:${PYTHON}-slim AS build
ARG DEVICE=cpu
ARG RAY=2.60.0
WORKDIR /source
# What the package needs, in a layer of its own, which is made again only when pyproject.toml changes.
COPY pyproject.toml ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
      print(*project['dependencies'], *project['optional-dependencies']['cluster'], sep='\n')" > requirements.txt
# By itself pip takes PyTorch's CUDA build; the one for CPUs, marked +cpu, goes before it where both are offered.
RUN case "$DEVICE" in \
      cpu) more="--extra-index-url https://download.pytorch.org/whl/cpu" ;; \
      cuda) more= ;; \
      *) echo "DEVICE is cpu or cuda, not $DEVICE" >&2; exit 2 ;; \
    esac \
    && pip install --no-cache-dir --prefix=/install $more -r requirements.txt "ray==$RAY"
COPY README.md LICENSE NOTICE ./
COPY pipeline pipeline
RUN pip install --no-cache-dir --prefix=/package --no-deps .

FROM python:${PYTHON}-slim
ARG DEVICE=cpu
# Kubernetes asks Ray's nodes for their health with wget. Triton compiles what launches a kernel with gcc.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes wget $([ "$DEVICE" != cuda ] || echo gcc libc6-dev) \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --create-home ray
# Into the system's Python, whose folder is in the PATH of login shells too: KubeRay starts Ray from one.
COPY --from=build /install /usr/local
COPY --from=build /package /usr/local
# The NVIDIA runtime gives a container its GPUs when it asks for them.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility RAY_USAGE_STATS_ENABLED=0
USER 1000
WORKDIR /home/ray
CMD ["stylize-batch", "--help"]
