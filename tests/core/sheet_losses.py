"""Check values of the sheet on policy losses: its table of golden outputs (section 12), and the other sections."""

import math

import torch
from sheets import ABC, LENGTH, LOGP, REFERENCE, Row, beta_step, f64, golden, paid, paid_after, rm_weight

import marginkit as mk
from marginkit.core.rewards import implicit, per_token
from marginkit.core.tensors import Population

TAU = math.log(999.0)
H = (-5.0, -3.0, -1.0, 0.0, 1.0, 3.0, 10.0)
OF_H = ", ".join(f"h={h:g}" for h in H)
BATCH_G = (LOGP - REFERENCE) / LENGTH  # alpha-DPO's G, of which its running mean and sd are
MEAN_G, SD_G = (BATCH_G[:, 0] - BATCH_G[:, 1]).mean().item(), (BATCH_G[:, 0] - BATCH_G[:, 1]).std().item()
ALPHA_DPO = {"beta": 2.5, "gamma": 2.5 * 0.6, "alpha": 2.5 * 0.2}
# WPO's log_collision that makes q_w = -.5 and q_l = -.7: q = (logp - log_collision) / length
COLLISION = LOGP - LENGTH * f64([-0.5, -0.7])


# ---------------------------------------------------------------------------------------------- policy-losses, 12

GOLDEN = (
    Row("policy-losses 12, DPO beta=.1", paid("dpo", beta=0.1), "0.371101 0.403186 0.693147", ABC),
    Row("policy-losses 12, cDPO eps=.1", paid("cdpo", beta=0.1, eps=0.1), "0.451101 0.473186 0.693147", ABC),
    Row("policy-losses 12, rDPO eps=.1", paid("rdpo", beta=0.1, eps=0.1), "0.271101 0.315686 0.693147", ABC),
    Row("policy-losses 12, IPO sum tau=.1", paid("ipo", tau=0.1), "9.000000 4.000000 25.000000", ABC),
    Row("policy-losses 12, IPO mean tau=.1", paid("ipo_mean", tau=0.1), "22.090000 23.661276 25.000000", ABC),
    Row("policy-losses 12, hinge(ref) beta=.1", paid("rso_hinge", beta=0.1), "0.200000 0.300000 1.000000", ABC),
    Row("policy-losses 12, SLiC", paid("slic", delta=1.0, lam=0.1), "4.000000 4.500000 4.200000", ABC),
    Row(
        "policy-losses 12, SimPO beta=2.5 g=.55",
        paid("simpo", beta=2.5, gamma=2.5 * 0.55),
        "1.223445 2.126928 1.804745",
        ABC,
    ),
    Row(
        "policy-losses 12, SimPO beta=10 g=.3",
        paid("simpo", beta=10.0, gamma=10.0 * 0.3),
        "1.313262 5.504078 4.018150",
        ABC,
    ),
    Row("policy-losses 12, RePO gamma=.5", paid("repo", gamma=0.5), "0.300000 0.750000 0.600000", ABC),
    Row("policy-losses 12, RePO++", paid("repo_plus", beta=10.0, gamma=0.3), "1.313262 5.504078 4.018150", ABC),
    Row(
        "policy-losses 12, BPO logistic alpha=1",
        paid("bpo", beta=0.1, alpha=1.0, f="logistic"),
        "0.598139 0.854355 0.693147",
        ABC,
    ),
    Row(
        "policy-losses 12, BPO logistic alpha=.3",
        paid("bpo", beta=0.1, alpha=0.3, f="logistic"),
        "0.607192 0.854355 0.693147",
        ABC,
    ),
    Row(
        "policy-losses 12, BPO hinge alpha=.3",
        paid("bpo", beta=0.1, alpha=0.3, f="hinge"),
        "0.820000 1.300000 1.000000",
        ABC,
    ),
    *(
        Row(f"policy-losses 12, BPO alpha=1 {f}", paid("bpo", beta=0.1, alpha=1.0, f=f), printed, ABC)
        for f, printed in (
            ("squared", "0.640000 1.690000 1.000000"),
            ("truncated", "0.640000 1.690000 1.000000"),
            ("exponential", "0.818731 1.349859 1.000000"),
            ("savage", "0.202649 0.329984 0.250000"),
        )
    ),
    Row("policy-losses 12, DPOP lam=50", paid("dpop", beta=0.1, lam=50.0), "0.371101 14.300001 0.693147", ABC),
    Row(
        "policy-losses 12, Cal-DPO kappa=1",
        paid("cal_dpo", beta=0.01, kappa=1.0),
        "4240.000335 4409.000911 5000.693147",
        ABC,
    ),
    Row(
        "policy-losses 12, Cal-DPO kappa=.5",
        paid("cal_dpo", beta=0.01, kappa=0.5),
        "2120.000335 2204.500911 2500.693147",
        ABC,
    ),
    Row(
        "policy-losses 12, ODPO beta=.5 alpha=1 gap=2",
        paid("odpo", golden(grade=[[3.0, 1.0]] * 3), beta=0.5, alpha=1.0),
        "0.035976 0.058641 1.098612",
        ABC,
    ),
    Row(
        "policy-losses 12, ODPO beta=.5 alpha=.5 gap=.25",
        paid("odpo", golden(strength=[0.25] * 3), beta=0.5, alpha=0.5),
        "0.009116 0.014986 0.405465",
        ABC,
    ),
    Row(
        "policy-losses 12, R-DPO sign +",
        paid("r_dpo", beta=0.1, alpha=0.05, sign="derived"),
        "0.554355 0.718460 0.974077",
        ABC,
    ),
    Row(
        "policy-losses 12, R-DPO sign -",
        paid("r_dpo", beta=0.1, alpha=0.05, sign="minus"),
        "0.241008 0.210723 0.474077",  # the sheet prints 0.474078; sp(-0.5) = 0.4740770 (reward-models 2.3)
        ABC,
    ),
    Row("policy-losses 12, CPO", paid("cpo", beta=0.1, lam=1.0), "40.071645 45.078890 42.152978", ABC),
    Row(
        "policy-losses 12, CPO TRL-style",
        paid("cpo", beta=0.1, lam=1.0, sft_per="token"),
        "2.071645 2.328890 2.252978",
        ABC,
    ),
    Row("policy-losses 12, ORPO lam=.1", paid("orpo", lam=0.1), "2.058564 2.334522 2.175219", ABC),
    Row("policy-losses 12, SPPO-hard", paid("sppo", times=2.0, eta=1000.0), "492040 493109 500000", ABC),
    Row("policy-losses 12, NCA beta=.01", paid("nca", beta=0.01), "1.366594 1.369588 1.386294", ABC),
    Row(
        "policy-losses 12, KTO z0=.7",
        paid("kto_pair", beta=0.1, lam_d=1.0, lam_u=1.0, z0=0.7),
        "0.806043 0.846862 1.000000",
        ABC,
    ),
    Row(
        "policy-losses 12, WPO",
        paid("wpo", golden(log_collision=COLLISION), beta=0.1, clamp=True),
        "0.111773 0.121437 0.208772",
        ABC,
    ),
    Row(
        "policy-losses 12, WPO w",
        lambda: mk.recipe("wpo", beta=0.1, clamp=True).evaluate(golden(log_collision=COLLISION)).target.weight[:1],
        "0.301194",
    ),
    Row(
        "policy-losses 12, MADPO",
        paid(
            "madpo",
            golden(rm_head=[[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]),
            beta=0.1,
            c_max=4.0,
            tau=TAU,
            lam=1.0,
        ),
        "0.498122 0.028054 0.693147",
        ABC,
    ),
    Row("policy-losses 12, MADPO w", lambda: rm_weight(4.0, (1.0, -1.0, 0.0)), "1.342282 0.069582 1", ABC),
    Row("policy-losses 12, alpha-DPO batch mean and sd", lambda: f64([MEAN_G, SD_G]), "0.145238 0.150227"),
    Row(
        "policy-losses 12, alpha-DPO converged",
        paid_after(MEAN_G, SD_G, "alpha_dpo", **ALPHA_DPO),
        "1.713771 2.209554 1.514859",
        ABC,
    ),
    Row(
        "policy-losses 12, alpha-DPO converged, target",
        lambda: mk.recipe("alpha_dpo", **ALPHA_DPO).evaluate(golden(), Population(BATCH_G)).target.margin / 2.5,
        ".806038 .587321 .406641",
        ABC,
    ),
    Row(
        "policy-losses 12, alpha-DPO first step",
        paid("alpha_dpo", **ALPHA_DPO),
        "10.501548 6.160703 1.514859",
        ABC,
    ),
    Row(
        "policy-losses 12, alpha-DPO first step, target",
        lambda: (
            mk.recipe("alpha_dpo", **ALPHA_DPO)
            .evaluate(golden(), Population(BATCH_G, mean=f64(0.1 * MEAN_G), sd=f64(0.1 * SD_G), updates=1))
            .target.margin
            / 2.5
        ),
        "4.4006 2.2134 .4066",
        ABC,
    ),
    Row(
        "policy-losses 12, beta-DPO first step",
        paid("beta_dpo", beta=0.1, a=0.6, rho=0.0),
        ".050521 .072339 .693147",
        ABC,
    ),
    Row(
        "policy-losses 12, beta-DPO first step",
        beta_step((8.0, 7.0, 0.0)),
        ".5 .435890 .37",
        "mu, sd, beta_used",
    ),
    Row(
        "policy-losses 12, beta-DPO converged mu=5",
        paid_after(0.1 * 5.0, 0.1 * 4.0, "beta_dpo", beta=0.1, a=0.6, rho=0.0),
        "0.371101 0.403186 0.693147",
        ABC,
    ),
)

# The zero-init artefact of section 12 corrected (ours): the values of a converged average at any number of steps.
CORRECTED = (
    Row(
        "policy-losses 12, alpha-DPO first step, ema corrected",
        paid("alpha_dpo", **ALPHA_DPO, ema="corrected"),
        "1.713771 2.209554 1.514859",
        ABC,
    ),
    Row(
        "policy-losses 12, alpha-DPO third step, ema corrected",
        lambda: (
            mk.recipe("alpha_dpo", **ALPHA_DPO, ema="corrected")
            .evaluate(golden(), Population(BATCH_G, mean=f64(0.271 * MEAN_G), sd=f64(0.271 * SD_G), updates=3))
            .total
        ),
        "1.713771 2.209554 1.514859",
        ABC,
    ),
    Row(
        "policy-losses 12, beta-DPO first step, ema corrected",
        paid("beta_dpo", beta=0.1, a=0.6, rho=0.0, ema="corrected"),
        "0.371101 0.403186 0.693147",
        ABC,
    ),
)

# --------------------------------------------------------------------------------- policy-losses, the other sections

DETAILS = (
    Row("policy-losses 0, a_w", lambda: implicit(golden(), beta=1.0).chosen, "2 -3 0", ABC),
    Row("policy-losses 0, a_l", lambda: implicit(golden(), beta=1.0).rejected, "-6 -10 0", ABC),
    Row("policy-losses 0, D", lambda: implicit(golden(), beta=1.0).gap, "8 7 0", ABC),
    Row("policy-losses 0, m_w", lambda: per_token(golden(), beta=1.0).chosen, "-2.00 -2.25 -2.10", ABC),
    Row("policy-losses 0, m_l", lambda: per_token(golden(), beta=1.0).rejected, "-2.2 -2.0 -2.0", ABC),
    Row("policy-losses 0, M", lambda: per_token(golden(), beta=1.0).gap, "0.20 -0.25 -0.10", ABC),
    Row(
        "policy-losses 1, w at c_max=2",
        lambda: rm_weight(2.0, H),
        "0.037796 0.062014 0.44641 1 1.2037 1.0467 0.99524",
        OF_H,
    ),
    Row(
        "policy-losses 1, w at c_max=4",
        lambda: rm_weight(4.0, H),
        "3.3401e-4 2.9931e-4 0.069582 1 1.3423 1.0498 0.94889",
        OF_H,
    ),
    Row(
        "policy-losses 1, in the text",
        lambda: rm_weight(4.0, (-1.0, -3.0, 10.0)),
        "0.0696 3.0e-4 0.949",
        "h=-1, h=-3, h=10",
    ),
    Row(
        "policy-losses 1, largest w for 0 < h < tau",
        lambda: torch.stack([rm_weight(c, tuple(i / 100 for i in range(1, 690))).max() for c in (2.0, 3.0, 4.0)]),
        "1.21 1.33 1.42",
        "c_max=2, c_max=3, c_max=4",
    ),
    Row(
        "policy-losses 1, where w is largest at c_max=4",
        lambda: (1.0 + rm_weight(4.0, tuple(i / 100 for i in range(1, 690))).argmax(0, keepdim=True).double()) / 100,
        "0.58",
    ),
    Row(
        "policy-losses 1, effective target of h=9",
        lambda: 9.0 + (rm_weight(4.0, (9.0, -9.0)).log() * f64([1.0, -1.0])).sum(0, keepdim=True),
        "8.96",
    ),
    Row(
        "policy-losses 2, rho at alpha=1",
        lambda: 1.0 - mk.recipe("bpo", beta=0.1, alpha=1.0, f="hinge")(golden())[:2],
        "0.2 -0.3",
        "pair A, pair B",
    ),
    Row(
        "policy-losses 2, rho at alpha=.3",
        lambda: 1.0 - mk.recipe("bpo", beta=0.1, alpha=0.3, f="hinge")(golden())[:2],
        "0.18 -0.3",
        "pair A, pair B",
    ),
    Row("policy-losses 3, RePO gamma .5", paid("repo", gamma=0.5), ".30 .75 .60", ABC),
    Row("policy-losses 5, both conventions at C", lambda: paid("ipo", tau=0.1)()[2:], "25"),
    Row("policy-losses 5, both conventions at C, mean", lambda: paid("ipo_mean", tau=0.1)()[2:], "25"),
    Row("policy-losses 7, initial loss, beta .001", lambda: paid("cal_dpo", beta=0.001, kappa=0.5)()[2:], "2.5e5"),
    Row("policy-losses 7, initial loss, beta .002", lambda: paid("cal_dpo", beta=0.002, kappa=0.5)()[2:], "6e4"),
    Row("policy-losses 8, A=1,2,3,10", beta_step((1.0, 2.0, 3.0, 10.0)), ".4 .408248 .316", "mu, sd, beta_used"),
    Row("policy-losses 11, DPOP at B", lambda: paid("dpop", beta=0.1, lam=50.0)()[1:2], "14.3"),
)
