# qdc on CPUs, built from a clone:
#   docker build -t qdc .
#   docker run --rm qdc plan examples/tiny-llada
#   docker run --rm -v "$PWD:/data" --user "$(id -u)" qdc compile /data/model -o /data/out
#   docker run --rm -v "$PWD:/data" -p 127.0.0.1:8000:8000 qdc serve /data/out --host 0.0.0.0
FROM python:3.11-slim

# PyTorch first and alone, so that its version is the tested one whatever else asks for it. Its own
# index has small wheels without CUDA; for a GPU: --build-arg TORCH_INDEX=https://pypi.org/simple
ARG TORCH_VERSION=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" "torch==$TORCH_VERSION"

COPY pyproject.toml MANIFEST.in README.md LICENSE /src/
COPY qdc /src/qdc
COPY passes /src/passes
COPY backends /src/backends
RUN pip install --no-cache-dir "/src[serve,cpu]"

# Whoever runs it is nobody in particular: files that matplotlib keeps go where anybody may write.
ENV MPLCONFIGDIR=/tmp/matplotlib
RUN useradd --create-home qdc
USER qdc
WORKDIR /home/qdc
COPY examples examples

EXPOSE 8000
ENTRYPOINT ["qdc"]
CMD ["--help"]
