"""The application factory, which is the only place where the parts are wired together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

from flask import Flask

import cli
from cluster.redis_client import RedisClient
from config import ConfigError, Settings, shown_before
from config_file import TomlError
from endpoints import (
    all_streams,
    all_usage,
    chat,
    error_handlers,
    fim,
    groups,
    health,
    hooks,
    keys,
    llamacpp,
    models,
    native,
    openai,
    openai_models,
    pages,
    provider_health,
    tokenizers,
    usage,
)
from endpoints import metrics as metrics_page
from endpoints.flask_app import App
from endpoints.held_bodies import HeldBodies
from endpoints.openapi import page as openapi
from endpoints.services import Services
from gateway.gateway import Gateway
from keys.group import read_groups
from keys.store import KeyStore
from ledger.database import database_url
from ledger.ledger import Ledger
from providers.key_variables import near_misses
from providers.transport.proxy import unused
from quota.quota import Quota
from routing.circuit_breaker import CircuitBreakers
from server.read_deadline import read_deadlines
from telemetry import logs
from telemetry.call_records import CallRecords
from telemetry.key_metrics import CurrentLabels
from telemetry.metrics import Metrics

if TYPE_CHECKING:
    from cluster.ownership import Cluster, Subjects
    from streams.replay_sharing import SharedReplays
    from telemetry.tracing import Tracing

log = logging.getLogger("sluice.app")

BLUEPRINTS = tuple(
    module.bp
    for module in (
        native,
        openai,
        openai_models,
        chat,
        fim,
        llamacpp,
        tokenizers,
        models,
        usage,
        all_usage,
        all_streams,
        provider_health,
        keys,
        groups,
        health,
        metrics_page,
        pages,
        openapi,
    )
)


def create_app(settings: Settings | None = None) -> Flask:
    """Return the WSGI application. Raises ConfigError if its configuration is invalid."""
    settings = settings or Settings.from_env()
    logs.configure(settings.log_format, settings.log_level)
    logs.hide_once(shown_before(settings.environ))
    for warning in (*settings.warnings, *unused(settings.environ)):
        log.warning(warning)
    app = App(__name__, static_folder=None)
    app.url_map.strict_slashes = False
    try:
        app.extensions["sluice"] = wire(settings)
    except TomlError as error:
        raise settings.located(error) from None
    app.extensions["read_deadlines"] = read_deadlines  # for the worker, which can't import it
    hooks.register(app, settings.cors_origins)
    error_handlers.register(app)
    for blueprint in BLUEPRINTS:
        app.register_blueprint(blueprint)
    cli.register(app)
    return app


def wire(settings: Settings) -> Services:
    """Create the parts and connect them. Raises ConfigError."""
    redis_client = redis_of(settings)
    metrics = Metrics(
        streams_active=lambda: len(gateway.streams),
        ledger_queue=lambda: ledger.queue,
        cooling=lambda: len(gateway.open_circuits()),
        redis_up=None if redis_client is None else lambda: redis_client.available,
    )
    ledger = Ledger(
        database_url(settings.database_url, settings.database),
        required=settings.ledger_required,
        failed=metrics.ledger_failed,
        unrecorded=metrics.unrecorded,
    )
    cluster = None if redis_client is None else new_cluster(redis_client)
    tracing = traces(settings.otel_endpoint) if settings.otel_endpoint else None
    records = CallRecords(metrics, tracing, lambda: len(gateway.streams))
    quota = Quota(settings.reserve_tokens, redis_client, required=settings.limits_required)
    breakers = CircuitBreakers(enabled=settings.cooldown, redis_client=redis_client)
    gateway = Gateway(settings, quota, ledger, records.settled, breakers=breakers, cluster=cluster)
    beats = (quota.beat, breakers.exchange)
    shared_replays = share(redis_client, cluster, gateway, records, metrics, beats)
    keys = KeyStore(settings.keys_file, settings.keys, read_groups(settings.groups))
    watch(metrics, settings, keys, gateway)
    for warning in warnings(settings, gateway):
        log.warning(warning)
    return Services(
        settings=settings,
        keys=keys,
        gateway=gateway,
        quota=quota,
        ledger=ledger,
        metrics=metrics,
        records=records,
        bodies=HeldBodies(settings.bodies_total),
        redis_client=redis_client,
        cluster=cluster,
        shared_replays=shared_replays,
        tracing=tracing,
    )


def redis_of(settings: Settings) -> RedisClient | None:
    """Return the client of the Redis that several processes share, or None."""
    if not settings.redis_url:
        return None
    return RedisClient(settings.redis_url, verify=settings.redis_verify)


def new_cluster(redis_client: RedisClient) -> Cluster:
    """Return the cluster of the processes at a Redis."""
    # Imported here because a single process doesn't need redis-py.
    from cluster.ownership import Cluster

    return Cluster(redis_client)


def share(
    redis_client: RedisClient | None,
    cluster: Cluster | None,
    gateway: Gateway,
    records: CallRecords,
    metrics: Metrics,
    beats: Iterable[Callable[[], None]],
) -> SharedReplays | None:
    """Let the cluster stop this process's streams, answer what others ask, and run the beats.

    Return the resumable streams that the processes share, or None without Redis.
    """
    if redis_client is None or cluster is None:
        return None
    # Imported here because a single process doesn't need redis-py.
    from streams.replay_sharing import SharedReplays

    settings = gateway.settings
    shared_replays = SharedReplays(
        *(cluster, redis_client, gateway.replays),
        keep=settings.replay,
        orphan=settings.orphan,
        total=settings.replay_redis if settings.replay_total else 0,
    )
    gateway.replays.on_copy = gateway.streams.watch
    metrics.watch_replays(shared_replays.counts)
    subjects: Subjects = {
        "streams": gateway.streams.of_all_keys_here,
        "providers": lambda _: records.health(),
        shared_replays.subject: shared_replays.has,
    }
    more = (*shared_replicas(redis_client, gateway), shared_replays.beat, metrics.refresh)
    cluster.attend(gateway.streams, *beats, *more, subjects=subjects)
    return shared_replays


def watch(metrics: Metrics, settings: Settings, keys: KeyStore, gateway: Gateway) -> None:
    """Tell the metrics which keys, replicas and models may become labels."""
    if settings.metrics_keys:
        metrics.watch_keys(CurrentLabels(keys.all))
    if gateway.replica_calls():
        metrics.watch_replicas(gateway.replica_calls)
    aliased = chain.from_iterable(gateway.router.aliases.values())
    metrics.know([settings.default_model, settings.fim_model, *settings.prices, *aliased])


def warnings(settings: Settings, gateway: Gateway) -> Iterator[str]:
    """Yield a warning for each provider, price and model that is set up without an effect."""
    router = gateway.router
    yield from near_misses(router.providers.values(), settings.environ)
    yield from router.warnings()
    yield from gateway.prices.unused(router.providers, router.aliases)
    yield from router.hidden_models()


def shared_replicas(redis_client: RedisClient, gateway: Gateway) -> Iterator[Callable[[], None]]:
    """Yield the functions that share what is known of replicas, if there are any.

    They come after the exchange of circuit breakers.
    """
    if gateway.replica_calls():
        # Imported here because most servers don't need it.
        from routing.load_sync import LoadSync

        yield gateway.check_replicas
        yield LoadSync(redis_client, gateway.reader.replicas.loads).exchange


def traces(endpoint: str) -> Tracing:
    """Return tracing to an OTLP endpoint. Raises ConfigError if its packages are missing."""
    try:
        # Imported here because its packages are optional, and take memory.
        from telemetry.tracing import Tracing
    except ImportError:
        raise ConfigError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but the packages for tracing are not installed: "
            "pip install -r requirements-otel.txt"
        ) from None
    return Tracing(endpoint)
