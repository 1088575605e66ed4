"""Ratios and shares by hand."""

from dawm_jax.benchmark import measure, tables


def _numbers():
    side = lambda rate, seconds: {**measure.summary([rate]), "compile_seconds": seconds}
    return {
        "environment": "Hopper-v5",
        "variant": "quick",
        "dtype": "float32",
        "device": "1 x cpu",
        "versions": {"jax": "1.0"},
        "commit": "abc",
        "start": {"cold": 30.0, "warm": 10.0},
        "stages": {
            "fused": {
                "unit": "updates",
                "flops_per_unit": 2e9,
                "sides": {"jax": side(12.0, 3), "stock": side(4.0, 1), "tuned": side(6.0, 1)},
                "matmul": {"jax": measure.summary([48e9]), "torch": measure.summary([40e9])},
            }
        },
    }


def test_ratios_and_shares_by_hand(tmp_path):
    numbers = _numbers()
    assert tables.ratios_of(numbers["stages"]["fused"]) == {"stock": 3.0, "tuned": 2.0}
    text = tables.markdown(numbers)
    assert "| 3.00 | 2.00 | **2.00** | 2 | 50 % | 25 % |" in text
    assert "30.0 s with a cold cache" in text
    assert "JAX is 3.00x PyTorch, 2.00x PyTorch tuned" in tables.line(
        "fused", numbers["stages"]["fused"]
    )
    tables.plot_ratios(numbers, tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").stat().st_size > 1_000


def test_a_table_without_pytorch():
    numbers = _numbers()
    sides = numbers["stages"]["fused"]["sides"]
    del sides["stock"], sides["tuned"], numbers["stages"]["fused"]["matmul"]["torch"]
    assert "| fused, updates | 12 (12 to 12) | 2 | 50 % |" in tables.markdown(numbers)


def test_a_figure_of_growing_sizes(tmp_path):
    point = lambda size, rate: {
        **measure.summary([rate]),
        "size": size,
        "unit": "steps",
        "flops_per_unit": 1.0,
    }
    numbers = {
        **_numbers(),
        "devices": 1,
        "growth": {"batch": {"iql": [point(8, 4), point(16, 2)]}},
    }
    assert "| iql, ms per step | 250 | 500 |" in tables.growth_markdown(numbers)
    tables.plot_growth(numbers, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 1_000
