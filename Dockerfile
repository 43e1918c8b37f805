# One image for the indexing job and the query service; the command decides which.
FROM python:3.11-slim

RUN useradd --create-home --uid 1000 kalm && mkdir /index /corpus /models && chown kalm /index /models
WORKDIR /app
COPY constraints.txt pyproject.toml README.md LICENSE NOTICE ./
COPY kalm_cache kalm_cache
COPY indexer indexer
COPY query_service query_service
# the CPU build of torch: without the extra index, pip would fetch gigabytes of CUDA libraries
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" -c constraints.txt ".[parquet]"
COPY configs configs

USER kalm
VOLUME /index /models
EXPOSE 8080
ENTRYPOINT ["kalm-cache"]
CMD ["serve", "--index", "/index", "--host", "0.0.0.0"]
