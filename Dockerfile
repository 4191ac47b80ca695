# The GPU path: NVIDIA's TensorRT and its Python bindings are in the image, granplugin is added.
#
#   docker build -t granplugin .
#   docker run --rm --gpus all -v "$PWD:/work" granplugin apply recipe.yaml
#
# 25.09 has TensorRT 10.13, the least that granplugin reads, and Python 3.12; another tag:
# --build-arg TAG=...
ARG TAG=25.09-py3
FROM nvcr.io/nvidia/tensorrt:${TAG}

SHELL ["/bin/bash", "-o", "pipefail", "-c"]

WORKDIR /opt/granplugin
COPY pyproject.toml setup.cfg constraints.txt README.md LICENSE ./
COPY granplugin granplugin

# The environment takes the image's TensorRT: the one of the wheels would be a second. The versions
# are those that the tests ran with.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv --system-site-packages /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt ".[openvino]" \
    && /opt/venv/bin/python -c "import granplugin, tensorrt"

ENV PATH=/opt/venv/bin:$PATH
# What a run makes belongs to the one who started it: docker run --user "$(id -u):$(id -g)".
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["granplugin"]
CMD ["doctor"]
