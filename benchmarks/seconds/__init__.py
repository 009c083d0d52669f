"""Seconds: what apical costs and saves on this machine's clock.

    python -m benchmarks.seconds --out runs/seconds                 # all cases; about twelve minutes on two CPU cores
    python -m benchmarks.seconds --out runs/seconds --only training,latency --run runs/my-run
    python -m benchmarks.seconds --out runs/seconds-quick --quick   # does every case run? the numbers mean nothing
    python -m benchmarks.seconds.check runs/seconds                 # targets met or missed; exit status 1 if one is
    python -m benchmarks.seconds.report runs/seconds                # write seconds.md again from seconds.json

The runner measures and writes seconds.json; report and check only read it. Variants that are compared take turns in one
process, so that a slow spell of the machine meets all; figures are medians with quartiles, and what is judged are
ratios within the same round. Run it alone on the machine.
"""
