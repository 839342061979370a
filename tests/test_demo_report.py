from balsa_ray.demo_report import loss_curves, text_table


def test_curves_are_running_means_by_stage() -> None:
    steps = [{"stage": "single", "step": s, "loss": float(s)} for s in range(1, 31)]
    steps += [{"stage": "multi", "step": s, "loss": 1.0} for s in range(31, 36)]
    curves = loss_curves(steps, window=20)
    xs, ys = curves["single"]
    assert xs[0] == 20
    assert xs[-1] == 30
    assert abs(ys[0] - 10.5) < 1e-9
    assert curves["multi"] == ([35.0], [1.0])


def test_text_tables_line_up() -> None:
    lines = text_table(["", "random"], [["trained", "90.0"], ["untrained adapter", "50.0"]]).splitlines()
    assert len({line.index(word) for line, word in zip(lines, ["random", "90.0", "50.0"], strict=True)}) == 1
