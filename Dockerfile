FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1
WORKDIR /app

COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt

COPY . .
RUN python -m compileall -q . \
 && useradd --system --uid 10001 --home-dir /data --shell /usr/sbin/nologin sluice \
 && install -d -o sluice -g sluice -m 0700 /data
USER 10001

# The key file, and the SQLite ledger unless DATABASE_URL is set.
VOLUME /data
ENV PORT=8000 SLUICE_KEYS_FILE=/data/keys.jsonl SLUICE_DATABASE=/data/sluice.db
EXPOSE 8000

HEALTHCHECK --interval=15s --timeout=5s --start-period=20s \
  CMD ["python", "-c", "import os, urllib.request as r; e = os.environ; r.urlopen('http://127.0.0.1:%s%s/health' % (e['PORT'], e.get('SCRIPT_NAME', '').rstrip('/')), timeout=4)"]

# Without a shell, so that TERM reaches gunicorn, which needs SLUICE_DRAIN_S + 10 s to shut down.
CMD ["gunicorn", "wsgi:app"]
