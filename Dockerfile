# A server of exported models, without torch.
#
#   docker build -t clipadapter .
#   docker run --rm -p 8000:8000 --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#     -v "$PWD/models:/models:ro" clipadapter
#
# docs/serving.md says the rest.

FROM python:3.12-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src ./src
RUN python -m venv /opt/clipadapter \
    && /opt/clipadapter/bin/pip install --no-cache-dir '.[serve]'

FROM python:3.12-slim
COPY --from=build /opt/clipadapter /opt/clipadapter
# /tmp is all that is written to: what is made again when it is gone. ONNX Runtime would report its use to its makers.
ENV PATH=/opt/clipadapter/bin:$PATH \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/tmp
# A number, so that Kubernetes can see that it is not root.
USER 65532:65532
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
ENTRYPOINT ["clipadapter", "serve"]
CMD ["/models", "--host", "0.0.0.0"]
