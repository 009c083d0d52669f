"""The method's mathematics: pure functions on vectors of scores, one entry per channel, hidden unit or block.

Source: Yuan, Savarese, Maire, *Growing Efficient Deep Networks by Structured Continuous Sparsification*, ICLR 2021,
arXiv 2007.15353, cited as [SCS]. Every component i has a real score s_i and an age; from them follow

    temperature   β_i = β_0^(t_i / T)                     `age_temperature`
    mask          m_i = σ(β_i s_i)                        `relax`
    indicator     q_i ~ Bernoulli(σ(β_i s_i + μ))         `sample_indicators`, with μ from `shift_for_cost`
    penalty       λ Σ_i m_i                               `penalty`, `penalty_gradient`
    task          ∂L/∂s_i = β_i (1 − m_i) ⟨θ_i, ∂L/∂θ_i⟩  `score_gradient`

Nothing here holds state, moves a weight or knows a model.
"""

from apical.gates._budgeted import CostShift, shift_for_cost
from apical.gates._gradient import score_gradient, unit_products
from apical.gates._penalty import penalty, penalty_gradient, penalty_weight
from apical.gates._relaxation import age_temperature, relax
from apical.gates._sampling import critical_shift, draw_noise, sample_indicators

__all__ = [
    "CostShift",
    "age_temperature",
    "critical_shift",
    "draw_noise",
    "penalty",
    "penalty_gradient",
    "penalty_weight",
    "relax",
    "sample_indicators",
    "score_gradient",
    "shift_for_cost",
    "unit_products",
]
