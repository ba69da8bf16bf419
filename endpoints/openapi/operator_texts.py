"""Examples and meanings of the fields of operators' reports, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Final

from endpoints import all_usage
from endpoints.openapi.examples import ANSWERS as OTHER_EXAMPLES
from endpoints.openapi.examples import SUMS
from endpoints.openapi.meanings_of_answers import ANSWERS, COUNTS, SUM, below
from telemetry.provider_health import WINDOW_S

ONE_REFUSAL: Final = {
    "key_id": "key_Yw1TJ8jYyZ0c",
    "key_name": "laptop",
    "code": "rate_limited",
    "limit": "requests",
    "reason": "rate_limited:requests",
    "calls": 4,
}
DAYS: Final = {"start_date": "2026-04-01", "end_date": None, "key_id": None, "group": None}
EXAMPLES: Final[dict[str, Any]] = {
    "AllUsage": {
        "group_by": "key",
        **DAYS,
        "data": [{"name": "key_Yw1TJ8jYyZ0c", "key_name": "laptop"} | SUMS],
        "total": SUMS,
        "groups": 1,
        "refused": {"calls": 4, "data": [ONE_REFUSAL]},
        "next_cursor": None,
    },
    "AllRefusals": {
        "group_by": "refusal",
        **DAYS,
        "data": [ONE_REFUSAL],
        "total": {"calls": 4},
        "groups": 1,
        "next_cursor": None,
    },
    "AllStreams": {
        "data": [
            {
                "key_id": "key_Yw1TJ8jYyZ0c",
                "key_name": "laptop",
                **OTHER_EXAMPLES["ActiveStream"],
                "request_id": "my-stream",
                "endpoint": "/api/v1/completions",
                "stream": True,
                "state": "answering",
            }
        ],
        "total": 1,
        "processes": {"answered": 4, "missing": 0},
    },
    "ProvidersHealth": {
        "window_s": round(WINDOW_S),
        "processes": {"answered": 4, "missing": 0},
        "data": [
            {
                "name": "openai",
                "enabled": True,
                "needs": [],
                "reachable": True,
                "reachable_at": "2026-04-07T12:00:00Z",
                "models": 57,
                "breaker": {"state": "closed", "paused": [], "paused_total": 0},
                "calls": 120,
                "failures": 3,
                "error_rate": 0.025,
                "latency_ms": {"p50": 812.4, "p90": 1903.1, "p99": 4120.7},
                "first_event_ms": {"p50": 240.1, "p90": 410.9, "p99": 980.2},
                "errors": [
                    {
                        "code": "503",
                        "calls": 3,
                        "last_at": "2026-04-07T11:58:10Z",
                        "model": "gpt-4o-mini",
                    }
                ],
            }
        ],
    },
}
CSV: Final = (
    "key,name,requests,cost_usd,input_tokens,output_tokens,total_tokens,unpriced_requests\r\n"
    '"key_Yw1TJ8jYyZ0c","laptop",2,0.001600000,16,36,52,0\r\n'
)


PROCESSES: Final = {
    "processes": "The processes of this server that share a Redis.",
    "processes.answered": "The number of processes that answered, with this one.",
    "processes.missing": "The number of processes that didn't answer, so that their figures are "
    "missing; null if Redis can't be reached.",
}
REFUSAL: Final = {
    "key_id": "The id of the key.",
    "key_name": "The name of the key; null if it was deleted.",
    "code": "The code of the error.",
    "limit": "The limit that was reached, or what the server lacked; null if there is none.",
    "reason": "The code and the limit.",
    "calls": "How many calls were refused.",
}
HEADING: Final = {
    "group_by": "The kind of the groups.",
    "start_date": "The first day, in UTC; null if there is no limit.",
    "end_date": "The last day, in UTC; null if there is no limit.",
    "key_id": "The only key of the report; null for all keys.",
    "group": "The only group of keys of the report; null for all keys.",
    "groups": "The number of all groups, also those on other pages.",
    "next_cursor": "The cursor of the next page; null on the last one.",
}
PERCENTILE_MEANINGS: Final = {
    "p50": "50% of the attempts took at most that long.",
    "p90": "90% of the attempts took at most that long.",
    "p99": "99% of the attempts took at most that long.",
}


PROVIDER: Final = {
    "name": "The provider's name.",
    "enabled": "true if it can be called without a caller's own provider key.",
    "needs": "The environment variables that it lacks.",
    "reachable": "true if the latest attempt reached it; null if there was no attempt.",
    "reachable_at": "When that attempt was made.",
    "models": "How many models its host lists, as far as this process knows; null if unknown.",
    "breaker": "The pauses of calls to it, as far as this process knows.",
    "breaker.state": "The worst state of its models. limited: after a 429.",
    "breaker.paused": "The models that are paused, the worst first.",
    "breaker.paused.model": "The model; null for all.",
    "breaker.paused.key_number": "Which of your provider keys; null for all.",
    "breaker.paused.replica": "The replica, if the provider has any.",
    "breaker.paused.state": "open: not called. half_open: one call may try it. limited: a 429.",
    "breaker.paused.seconds": "How long the pause still lasts.",
    "breaker.paused_total": "The number of pauses, including those that aren't listed.",
    "calls": "The attempts of all processes.",
    "failures": "The attempts that failed through the provider's fault.",
    "error_rate": "Failures per call; null if there were no calls.",
    "latency_ms": "The time of the attempts that were completed, in milliseconds.",
    **below("latency_ms", PERCENTILE_MEANINGS),
    "first_event_ms": "The time to the first event, in milliseconds.",
    **below("first_event_ms", PERCENTILE_MEANINGS),
    "errors": "The errors by code, the latest first.",
    "errors.code": "The provider's HTTP status, else the code of Sluice's error.",
    "errors.calls": "How many attempts failed with it in the window.",
    "errors.last_at": "When the last one did, which may be before the window.",
    "errors.model": "The provider's name for the model of the last one.",
}


STREAM: Final = {
    "data": "The active calls, oldest first.",
    **below("data", ANSWERS["ActiveStream"]),
    "data.key_id": "The id of the caller's key.",
    "data.key_name": "The name of that key; null if it was deleted.",
    "data.request_id": "The request's id, by which the call can be stopped too.",
    "data.endpoint": "The path that was called.",
    "data.stream": "true if the completion is streamed.",
    "data.state": "queued: before the first attempt. waiting: before the first text.",
    "total": "The number of active calls, also those that aren't listed.",
    **PROCESSES,
}


def meanings() -> dict[str, dict[str, str]]:
    return {
        "AllUsage": {
            **HEADING,
            "data": "The sums of each group.",
            "data.name": "The group's name: a key's id, a day, a model, ...",
            "data.key_name": "The name of the key, if the groups are keys; null if it was deleted.",
            **below("data", SUM | COUNTS),
            "total": "The sums of all groups together, also those on other pages.",
            "refused": "The calls that were refused, which aren't among the requests. null in a "
            "report about a group of keys.",
            "refused.calls": "The number of refused calls.",
            "refused.data": f"The counts by key and reason, at most {all_usage.MOST_REFUSALS}.",
            **below("refused.data", REFUSAL),
        },
        "AllRefusals": {
            **HEADING,
            "data": "The refused calls by key and reason.",
            **below("data", REFUSAL),
            "total": "All refused calls together.",
            "total.calls": "The number of refused calls.",
        },
        "AllStreams": STREAM,
        "ProvidersHealth": {
            "window_s": "The seconds that calls, failures and times cover.",
            **PROCESSES,
            "data": "The providers.",
            **below("data", PROVIDER),
        },
    }
