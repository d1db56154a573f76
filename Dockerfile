# The command line in a container, on a CPU:
#
#     docker build -t unmask .
#     docker run --rm -v "$PWD":/work unmask demo
#
# With CUDA, from an image that has torch; its torch stays:
#
#     docker build -t unmask:cuda --build-arg BASE=pytorch/pytorch:2.10.0-cuda12.8-cudnn9-runtime .
#     docker run --rm --gpus all -v "$PWD":/work unmask:cuda train mnist-gpu --data DIR
ARG BASE=python:3.12-slim
FROM ${BASE}

# More words for pip, such as an index of CPU-only builds of torch, which are smaller.
ARG PIP_ARGS=""
COPY pyproject.toml README.md LICENSE /source/
COPY src /source/src
RUN pip install --no-cache-dir ${PIP_ARGS} "/source[demo,text,data]" && rm -r /source

# Not root: what the container writes into a mounted folder should belong to its user. Add `--user "$(id -u)"`.
RUN useradd --create-home unmask
USER unmask
WORKDIR /work
ENTRYPOINT ["unmask"]
CMD ["--help"]
