# A broker in a container: docker build -t sse-broker . (compose.yaml runs two of them as a cluster).
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv --without-pip /opt/sse-broker
COPY setup.cfg setup.py README.md ./
COPY packaging/pins.txt packaging/
COPY sse_broker sse_broker
COPY templates templates
COPY etc etc
# The versions that the other packages hold, too. What lies in the environment is compiled, so nothing is written later.
RUN python -m pip --python /opt/sse-broker/bin/python install --no-cache-dir --constraint packaging/pins.txt \
    ".[public-keys]"
COPY packaging/container/healthcheck.py /opt/sse-broker/bin/

FROM python:3.13-slim
COPY --from=build /opt/sse-broker /opt/sse-broker
# Reachable from outside the container, which asks for SSE_BROKER_JWT_SECRET and SSE_BROKER_API_KEYS.
ENV PATH=/opt/sse-broker/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SSE_BROKER_SERVER_HOST=0.0.0.0
USER 10001:10001
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=4s --start-period=20s --retries=3 CMD ["healthcheck.py"]
# Its first process, so that it gets the signals itself: SIGTERM drains, which takes up to ten seconds.
STOPSIGNAL SIGTERM
ENTRYPOINT ["sse-broker"]
