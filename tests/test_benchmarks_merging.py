"""The table of the merging benchmark: means over seeds and costs against each domain's own adapter, by hand."""

from tests.benchmarks.merging import PAIRS, table


def test_costs_are_told_against_the_own_adapter() -> None:
    dark, bright = PAIRS["nuclei"]
    rows = [
        {"pair": "nuclei", "seed": seed, "row": row, "scores": {dark: first, bright: second}}
        for row, seed, first, second in (
            (f"adapter of {dark}", 0, 0.8, 0.1),
            (f"adapter of {dark}", 1, 0.6, 0.3),
            (f"adapter of {bright}", 0, 0.2, 0.5),
            ("average", 0, 0.6, 0.45),
        )
    ]
    rows.append(
        {"pair": "nuclei", "seed": 0, "row": "router", "scores": {dark: 0.8}, "routed_right": {dark: 1, bright: 0}}
    )
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(rows, "nuclei").splitlines()]
    assert lines[0] == ["row", dark, f"cost {dark}", bright, f"cost {bright}", "routed right"]
    assert lines[2] == [f"adapter of {dark}", "0.700", "0.000", "0.200", "0.300", "-"]
    assert lines[4] == ["average", "0.600", "0.100", "0.450", "0.050", "-"]
    assert lines[5] == ["router", "0.800", "-0.100", "-", "-", "0.500"]
