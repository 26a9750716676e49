from profiler.identity import result_id
from profiler.wire import Execution, Result, Timing

RESULT = Result(
    agent_id="agent-1",
    task_id="task-1",
    attempt=1,
    graph_sha256="0" * 64,
    execution=Execution(),
    timing=Timing(
        hot_ns=(1_000_000,),
        cold_ns=(2_000_000,),
        hot_ms=1.0,
        cold_ms=2.0,
        low_ms=1.0,
        high_ms=1.0,
        confidence=0.95,
        converged=True,
        outliers=0,
        rounds=1,
        warmup_runs=5,
    ),
    context={"load": 0.1, "governor": None},
    measured_at="2026-01-01T00:00:00+00:00",
)


def test_identity_is_the_same_after_a_journey_through_json() -> None:
    assert result_id(Result.model_validate_json(RESULT.model_dump_json())) == result_id(RESULT)


def test_identity_does_not_depend_on_the_order_of_the_context() -> None:
    turned = RESULT.model_copy(update={"context": {"governor": None, "load": 0.1}})
    assert result_id(turned) == result_id(RESULT)


def test_identity_is_never_changed_by_a_release() -> None:
    assert result_id(RESULT) == "59b393e28daffb59982b84a898d37843a4936c705319e03bf20f8a2c99f68b78"


def test_other_content_other_identity() -> None:
    assert result_id(RESULT.model_copy(update={"attempt": 2})) != result_id(RESULT)


def test_a_time_has_one_identity_in_every_zone() -> None:
    elsewhere = RESULT.model_copy(update={"measured_at": "2026-01-01T02:00:00+02:00"})
    assert result_id(elsewhere) == result_id(RESULT)


def test_what_is_no_time_still_has_an_identity_for_the_refusal() -> None:
    for text in ("noon", "2026-01-01T00:00:00", "0001-01-01T00:00:00+05:00"):
        assert len(result_id(RESULT.model_copy(update={"measured_at": text}))) == 64
