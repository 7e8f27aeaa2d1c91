"""A budget never exceeds its bounds, whoever comes and goes, and serves the keys that wait in turn."""

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.budgets.budget import Budget
from app.budgets.process_budgets import ProcessBudgets
from app.errors import EarmarkError, Overloaded, RateLimited
from app.redis_client import connect_async
from app.settings import Settings


def test_a_key_may_hold_its_share_and_all_keys_the_total() -> None:
    async def run() -> None:
        budget = Budget("slots", "slots", total=4, share=0.5)
        async with budget.hold("a"), budget.hold("a"):
            with pytest.raises(RateLimited, match="limit of a key on slots is 2 at once") as refusal:
                async with budget.hold("a"):
                    pass
            assert refusal.value.retry_after
            async with budget.hold("b"), budget.hold("c"):
                with pytest.raises(Overloaded, match="as many slots") as overload:
                    async with budget.hold("d"):
                        pass
                assert overload.value.retry_after
        assert budget.used == 0
        assert budget.refused == {"key": 1, "all": 1}

    asyncio.run(run())


def test_without_a_key_the_whole_budget_may_be_held() -> None:
    async def run() -> None:
        budget = Budget("slots", "slots", total=2, share=0.5)
        async with budget.hold(""), budget.hold(""):
            assert budget.used == 2

    asyncio.run(run())


def test_a_hold_grows_up_to_the_share() -> None:
    async def run() -> None:
        budget = Budget("bytes", "bytes", total=100, share=0.5)
        async with budget.hold("a", 0) as hold:
            hold.grow(50)
            with pytest.raises(RateLimited):
                hold.grow(1)
        assert budget.used == 0

    asyncio.run(run())


def test_a_request_knows_whether_it_waited() -> None:
    async def run() -> None:
        budget = Budget("slots", "slots", total=1, share=None, patience=60)

        async def request() -> bool:
            async with budget.hold("a") as hold:
                await asyncio.sleep(0)
                return hold.has_waited

        assert await asyncio.gather(request(), request()) == [False, True]

    asyncio.run(run())


def test_a_new_key_is_served_before_the_many_requests_of_another() -> None:
    async def run() -> None:
        budget = Budget("slots", "slots", total=2, share=0.5, patience=60)
        order = []

        async def request(key_id: str) -> None:
            async with budget.hold(key_id):
                order.append(key_id)
                await asyncio.sleep(0)

        many = [asyncio.create_task(request("many")) for _ in range(20)]
        await asyncio.sleep(0)
        await request("new")
        assert order.index("new") <= 2
        await asyncio.gather(*many)
        assert (budget.used, budget.waiting) == (0, 0)

    asyncio.run(run())


def test_who_waits_too_long_is_refused() -> None:
    async def run() -> None:
        budget = Budget("slots", "slots", total=1, share=1, patience=0.01)
        async with budget.hold("a"):
            with pytest.raises(RateLimited):
                async with budget.hold("a"):
                    pass
            with pytest.raises(Overloaded):
                async with budget.hold("b"):
                    pass
        assert (budget.used, budget.waiting) == (0, 0)

    asyncio.run(run())


def test_what_a_key_holds_is_needed_by_others_once_one_of_them_found_no_room() -> None:
    async def run() -> None:
        budget = Budget("slots", "slots", total=4, share=0.5)

        async def is_refused(key_id: str) -> None:
            with pytest.raises(EarmarkError):
                async with budget.hold(key_id):
                    pass

        async with budget.hold("a"), budget.hold("a"), budget.hold("b"):
            assert not budget.is_scarce("a")
            await is_refused("a")
            assert budget.is_scarce("a") and not budget.is_scarce("b")
            async with budget.hold("c"):
                await is_refused("b")
            assert budget.is_scarce("b")
        assert isinstance(budget.take_back(), Overloaded)
        assert budget.refused == {"key": 1, "all": 1, "slow": 1}

    asyncio.run(run())


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(0, 4), st.booleans()), max_size=30))
def test_bounds_hold_and_nothing_leaks_whatever_comes_and_goes(
    requests: list[tuple[str, int, int, bool]],
) -> None:
    async def run() -> None:
        budget = Budget("slots", "slots", total=5, share=0.6, patience=60)
        held = {"a": 0.0, "b": 0.0, "c": 0.0}

        async def request(key_id: str, amount: int, turns: int) -> None:
            async with budget.hold(key_id, amount):
                held[key_id] += amount
                try:
                    assert sum(held.values()) <= 5
                    assert held[key_id] <= 3
                    for _ in range(turns):
                        await asyncio.sleep(0)
                finally:
                    held[key_id] -= amount

        tasks = []
        for key_id, amount, turns, is_cancelled in requests:
            tasks.append(asyncio.create_task(request(key_id, amount, turns)))
            if is_cancelled:
                await asyncio.sleep(0)
                tasks[-1].cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        assert (budget.used, budget.waiting, budget.keys) == (0, 0, set())

    asyncio.run(run())


def test_metrics_tell_what_is_used_and_what_was_refused() -> None:
    async def run() -> dict[str, float]:
        settings = Settings(probe_slots=1, budget_patience=0)
        budgets = ProcessBudgets(settings, connect_async(settings))  # Redis is not needed for the figures
        async with budgets.probes.hold("a"):
            with pytest.raises(Overloaded):
                async with budgets.probes.hold("b"):
                    pass
            samples = [sample for metric in budgets.collect() for sample in metric.samples]
        return {" ".join((sample.name, *sample.labels.values())): sample.value for sample in samples}

    values = asyncio.run(run())
    assert values["earmark_budget_limit probes"] == 1
    assert values["earmark_budget_used probes"] == 1
    assert values["earmark_budget_waiting probes"] == 0
    assert values["earmark_budget_refused_total probes all"] == 1
    assert values["earmark_budget_refused_total probes key"] == 0
