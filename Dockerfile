# One image for the indexing job and the query service; the command decides which.
FROM python:3.11-slim

# The decoder's kernels are compiled at the first start, for the processor that runs them (else plain torch is used).
# tini is process 1: it passes signals on from the first moment, and buries what others leave behind. KubeRay probes with wget.
RUN apt-get update && apt-get install -y --no-install-recommends g++ tini wget && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid 1000 kalm && mkdir /index /corpus /models /text-cache && chown kalm /index /models /text-cache
WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE NOTICE ./
COPY kalm_cache kalm_cache
COPY indexer indexer
COPY query_service query_service
# For a machine without a GPU, give PyTorch's CPU index: --build-arg TORCH_INDEX=URL; else pip fetches CUDA libraries.
ARG TORCH_INDEX=
# For Ray: --build-arg EXTRAS=cloud,otel,parquet,ray
ARG EXTRAS=cloud,otel,parquet
RUN pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt ".[$EXTRAS]"
COPY configs configs

USER kalm
VOLUME /index /models /text-cache
EXPOSE 8080
ENTRYPOINT ["tini", "--", "kalm-cache"]
CMD ["serve", "--index", "/index", "--host", "0.0.0.0"]
