"""Check values of the sheet on margins: MMPO, gamma-PO, AMaPO."""

import math

import torch
from sheets import (
    Row,
    amapo_margins,
    f64,
    gamma_margins,
    heads,
    outlier_z,
    ratio_of_margins,
    slope,
    soft,
    soft_slope,
    with_gaps,
)

import marginkit as mk
from marginkit.core.tensors import PairScores

# ------------------------------------------------------------------------------------------------- policy-margins

R = (-2.0, -0.5, 0.0, 1.0, 3.0)
OF_R = ", ".join(f"r={r:g}" for r in R)
D1, D2, D3, D4 = (-0.5, 0.0, 0.5, 1.0), (-0.4, -0.3, -0.2, -0.1), (0.2, 0.3, 0.4, 2.0), (-1.0, 1.0, -1.0, 1.0)

MARGINS = (
    Row("policy-margins 1.3, p at gamma=.3", soft(0.3, 1.0, 3.0, 9.0), ".574443 .710950 .937027", "m=1, m=3, m=9"),
    Row("policy-margins 1.3, p at gamma=1.1", soft(1.1, 1.0, 3.0, 9.0), ".750260 .964429 .999950", "m=1, m=3, m=9"),
    Row("policy-margins 1.3, p at gamma=2.2", soft(2.2, 1.0, 3.0, 9.0), ".900250 .998641 1.000000", "m=1, m=3, m=9"),
    Row("policy-margins 1.2, p of vote gaps at gamma=1.1", soft(1.1, 3.0, 9.0), "0.964 0.99995", "m=3, m=9"),
    Row(
        "policy-margins 1.7, d=(1,2) p=(.6,.9)",
        lambda: mk.recipe("mmpo_rm")(heads(1.0, 2.0, prob=[0.6, 0.9])).mean()[None],
        "0.520095",
    ),
    *(
        Row(
            f"policy-margins 1.8, beta*h={z} p={p:.3g}",
            lambda z=z, p=p: torch.cat(
                (
                    mk.recipe("mmpo", beta=0.1)(
                        PairScores(logp=f64([[10 * z, 0.0]]), ref_logp=f64([[0.0, 0.0]]), prob=f64([p]))
                    ),
                    soft_slope(z, p),
                )
            ),
            printed,
            "L, dL/dz",
        )
        for z, p, printed in (
            (0.9, 1.0 / (1.0 + math.exp(-0.9)), ".601299 0.000000"),
            (0.0, 1.0, ".693147 -.5"),
            (2.0, 0.7, ".726928 .180797"),
            (-1.5, 0.9, "1.551413 -.717574"),
        )
    ),
    *(
        Row(f"policy-margins 2.6, gamma0={gamma} tau={tau}", gamma_margins(R, gamma, tau), printed, OF_R)
        for gamma, tau, printed in (
            (4.0, 10.0, "3.90639 3.92074 3.93227 3.97845 4.26214"),
            (3.0, 3.0, "2.69315 2.76850 2.82283 3.00509 3.71042"),
            (5.0, 20.0, "4.96625 4.97029 4.97362 4.98773 5.10211"),
            (0.375, 10.0, ".36955 .37246 .37404 .37747 .38147"),
            (4.0, 0.1, "2.31699 3.29275 3.67328 4.48477 6.23221"),
        )
    ),
    Row(
        "policy-margins 2.6, gamma0=4 tau=.1, fixed point",
        gamma_margins(R, 4.0, 0.1, "fixed_point"),
        "2.31455 3.29372 3.67397 4.48523 6.23252",
        OF_R,
    ),
    Row(
        "policy-margins 2.6, weights of SimPO",
        lambda: -slope("simpo", R, beta=1.0, gamma=4.0)(),
        ".99753 .98901 .98201 .95257 .73106",
        OF_R,
    ),
    Row(
        "policy-margins 2.6, weights of gamma-SimPO",
        lambda: -slope("gamma_simpo", R, beta=1.0, gamma=4.0, tau=10.0)(),
        ".99729 .98812 .98078 .95159 .77939",
        OF_R,
    ),
    Row(
        "policy-margins 2.2, gamma_max / gamma_min",
        lambda: torch.cat(
            [ratio_of_margins(*shipped) for shipped in ((4.0, 10.0), (3.0, 3.0), (5.0, 20.0), (0.375, 10.0))]
        ),
        "1.49 2.72 1.28 1.04",
        "Llama, Qwen, Gemma, Mistral",
    ),
    Row("policy-margins 3.7, D=(-.5,0,.5,1) m", amapo_margins(D1, 2.0), "2.67412 2.20333 0 0"),
    Row(
        "policy-margins 3.7, D=(-.5,0,.5,1) L",
        lambda: mk.recipe("amapo", beta=2.0)(with_gaps(f64(D1))),
        "3.69918 2.30809 .31326 .12693",
    ),
    Row("policy-margins 3.7, D=(-.5,0,.5,1) dL/dD", slope("amapo", D1, beta=2.0), "-1.95051 -1.80110 -.53788 -.23841"),
    Row("policy-margins 3.7, D=(-.5,0,.5,1) paper m", amapo_margins(D1, 2.0, "paper"), "3.57546 2.42734 0 0"),
    Row("policy-margins 3.7, D=(-.4..-.1) m", amapo_margins(D2, 2.0), "1.49582 1.81543 0 0"),
    Row("policy-margins 3.7, D=(-.4..-.1) paper m", amapo_margins(D2, 2.0, "paper"), "0 0 2.42734 3.57546"),
    Row("policy-margins 3.7, D=(.2,.3,.4,2) m", amapo_margins(D3, 2.5), "3.90412 3.58633 3.29441 0"),
    Row("policy-margins 3.7, D=(.2,.3,.4,2) paper m", amapo_margins(D3, 2.5, "paper"), "7.61901 6.16192 4.98349 0"),
    Row("policy-margins 3.7, D=(-1,1,-1,1) m", amapo_margins(D4, 2.0), "2 0 2 0"),
    Row("policy-margins 3.7, D=(-1,1,-1,1) paper m", amapo_margins(D4, 2.0, "paper"), "0 0 0 0"),
    Row("policy-margins 3.7, D constant, m", amapo_margins((0.7, 0.7, 0.7), 2.0), "0 0 0"),
    Row("policy-margins 3.7, D constant, paper m", amapo_margins((0.7, 0.7, 0.7), 2.0, "paper"), "0 0 0"),
    Row(
        "policy-margins 3.6, largest z",
        lambda: torch.cat([outlier_z(size) for size in (8, 4, 128)]),
        "2.47 1.5 11.2",
        "M=8, M=4, M=128",
    ),
)
