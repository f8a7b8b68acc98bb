"""The model of `jaxdist plan` beside published scaling tables that none of its constants comes from.

Only speeds of one pod, or of one machine, are taken from a table: efficiencies are relative to them.
Everything else is the model's: bytes from the parameters, links from `jaxdist.network.PRESETS`.

1. MaxText's README (github.com/AI-Hypercomputer/maxtext, "TPU v5e"): TFLOP/s a chip on 1 to 32 pods of 256
   v5e chips; each pod holds one copy, shared out over it, and pods average gradients over the
   data-centre network. `MaxText/configs/v5e/{16b,64b}.sh`: 6 and 2 sequences of 2048 tokens a chip.
2. TensorFlow's benchmarks of May 2017 (github.com/tensorflow/docs, site/en/r1/guide/performance/
   benchmarks.md, "Amazon EC2 Distributed"): images a second on 1 to 8 instances p2.8xlarge of 8 K80 GPUs
   each, variables replicated and updated together, synthetic data. 10 Gb/s a p2.8xlarge: Amazon's briefing
   "GPU and FPGA" of March 2017. Parameters: keras.io/api/applications.
3. Not a table, but the abstract of Assran et al. (arXiv:1811.10792, first version): ResNet-50, 90 epochs
   of ImageNet on 32 nodes and 10 Gb/s Ethernet take SGP 1.6 hours and AllReduce-SGD "over 5"; 256 images a
   node, by its `job_scripts/submit_SGP_ETH.sh`.

    python benchmarks/plan_against_published.py > docs/plan.md
"""

import numpy as np

from jaxdist import network, plan
from jaxdist.network import PRESETS

ETHERNET = PRESETS["ethernet_10g"]
PODS = (1, 2, 4, 8, 16, 32)
# Name -> parameters, tokens a chip and step, published TFLOP/s a chip on that many pods.
MAXTEXT = {
    "16B": (16e9, 6 * 2048, (120, 117, 117, 115, 111, 108)),
    "64B": (64e9, 2 * 2048, (118, 112, 110, 108, 105, 99)),
}
MACHINES = (1, 2, 4, 8)
# Name -> parameters, images a machine and step, published images a second on that many machines.
TENSORFLOW = {
    "InceptionV3": (23.9e6, 8 * 64, (229, 459, 902, 1783)),
    "ResNet-50": (25.6e6, 8 * 64, (378, 751, 1388, 2744)),
    "ResNet-152": (60.4e6, 8 * 32, (146, 291, 565, 981)),
}

INTRODUCTION = """# What `jaxdist plan` predicts, and how wrong it is

```bash
jaxdist plan configs/digits_gossip.py --target v5e:16x16 --workers 64,256,1024,4096 --picture plan.png
```

A prediction from a model, and no measurement: the operations of one worker's gradient, read from its
compiled program, at an assumed part of the chip's peak; the bytes that a method declares, over links of
which `jaxdist/network.py` and `jaxdist/plan.py` name the sources; and whom its workers wait for. The
formulas stand at the top of `jaxdist/plan.py`. `--target` is the chip and the shape of a whole slice; more
workers than it holds take more slices. Every worker keeps its batch, so that the efficiency is that of
weak scaling: computing time over step time.

- Not in it: stragglers, input, the host, memory, failed links, what chips of one worker say to each other
  (it is in the utilisation), and the fixed cost of a step, without which a step below about 0.1 ms is not
  to be believed.
- An exchange is hidden only where the compiled program can hide it: `order="combine_while_adapt"`, `delay` of
  `jd.push_sum` or of `jd.streaming_diloco`; with a graph or a fragment that varies only under
  `Experiment(overlap=True)` (`tests/test_ahead_of_time.py`). The all-reduce of a gradient is
  never hidden, though XLA can be told to: for synchronous methods the prediction errs to the slow side.
- `sharded_all_reduce` is charged for the reduce-scatter that it asks for. Compiled for v5e and v5p it was an
  all-reduce, with which it sends half as much again (`docs/overlap.md`).
- A ring of gossip through several slices leaves each by one chip, whose part of the data-centre network is
  then the bottleneck; methods that average within slices first are better off.

This page is written by `python benchmarks/plan_against_published.py`, which names where the published
numbers are from. None of them was used to choose a constant.
"""


def maxtext() -> list[tuple[str, int, float, float]]:
    """(model, pods, published, predicted) efficiency against one pod."""
    rows = []
    for name, (parameters, tokens, published) in MAXTEXT.items():
        for pods, speed in zip(PODS, published, strict=True):
            layout = plan.lay_out("v5e:16x16", pods, chips=256)
            compute = 6 * parameters * tokens / (plan.UTILISATION * layout.chip.peak)
            exchange = plan.all_reduce_seconds(layout, 4 * parameters)
            rows.append((name, pods, speed / published[0], compute / (compute + exchange)))
    return rows


def tensorflow() -> list[tuple[str, int, float, float]]:
    """(model, machines, published, predicted) efficiency against one machine."""
    rows = []
    for name, (parameters, images, published) in TENSORFLOW.items():
        compute = images / published[0]
        for machines, speed in zip(MACHINES, published, strict=True):
            exchange = network.all_reduce(ETHERNET, 4 * parameters, machines)
            efficiency = speed / (machines * published[0])
            rows.append((name, machines, efficiency, compute / (compute + exchange)))
    return rows


def show(title: str, unit: str, rows: list[tuple[str, int, float, float]]) -> None:
    """Prints one table, and its error."""
    print(f"## {title}\n")
    print(f"| model | {unit} | efficiency, published | predicted | predicted - published |")
    print("|---|---|---|---|---|")
    for name, count, published, predicted in rows:
        print(
            f"| {name} | {count} | {published:.3f} | {predicted:.3f} | {predicted - published:+.3f} |"
        )
    errors = np.array(
        [predicted - published for _, count, published, predicted in rows if count > 1]
    )
    lost = np.array([[1 - a, 1 - b] for _, count, a, b in rows if count == max(r[1] for r in rows)])
    print(
        f"\nMean error {errors.mean():+.3f}, largest {max(errors, key=abs):+.3f}. Of the part of the time "
        f"that is lost at the largest size, the model foresees {lost[:, 1].sum() / lost[:, 0].sum():.0%}.\n"
    )


def main() -> None:
    """Prints the comparison as a page."""
    print(INTRODUCTION)
    show("MaxText on pods of 256 TPU v5e", "pods", maxtext())
    assumed = plan.UTILISATION * plan.CHIPS["v5e"].peak / 1e12
    print(
        f"The absolute speed is another matter: the model assumes {plan.UTILISATION:.0%} of the peak, "
        f"{assumed:.0f} TFLOP/s a chip, where MaxText reaches 99 to 120 ({assumed / 120 - 1:+.0%} against "
        "its 16B model on one pod). Give `--utilisation` what your model reaches.\n"
    )
    show("TensorFlow on machines of 8 K80 and 10 Gb/s", "machines", tensorflow())
    steps = 90 * 1_281_167 / (32 * 256)
    size = 4 * 25.6e6
    predicted = network.all_reduce(ETHERNET, size, 32) - network.message(ETHERNET, size)
    published = (5 - 1.6) * 3600 / steps
    print("## AllReduce-SGD against SGP on 32 nodes and 10 Gb/s\n")
    print(
        f"In {steps:,.0f} steps AllReduce-SGD took at least {published:.2f} s a step longer than SGP; "
        f"the model says {predicted:.2f} s, {published / predicted:.0f} times too little. Bytes over the "
        "line rate are a lower bound: an all-reduce over TCP that reaches a tenth of it, or 32 nodes that "
        "wait for the slowest at every step, are not in it."
    )


if __name__ == "__main__":
    main()
