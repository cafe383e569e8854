"""Parts taken out of a model: blocks, heads and neurons, by what findings say they do; single weights, simulated."""

from interp.efficiency.counting import Count, count
from interp.efficiency.pruning.activation_norm import ActivationNormPruning
from interp.efficiency.pruning.blocks import BlockPruning
from interp.efficiency.pruning.greedy_heads import GreedyHeadPruning
from interp.efficiency.pruning.heads import HeadPruning
from interp.efficiency.pruning.magnitude import MagnitudePruning
from interp.efficiency.pruning.multipruner import MultiPruner
from interp.efficiency.pruning.neurons import NeuronPruning
from interp.efficiency.pruning.plan import PruningPlan
from interp.efficiency.pruning.random_units import RandomPruning
from interp.efficiency.pruning.removing import Removal, remove
from interp.efficiency.pruning.rescoring import GradientScores
from interp.efficiency.pruning.sparse import SparsePruning
from interp.efficiency.pruning.sparse_plan import SparsePlan

__all__ = [
    "ActivationNormPruning",
    "BlockPruning",
    "Count",
    "GradientScores",
    "GreedyHeadPruning",
    "HeadPruning",
    "MagnitudePruning",
    "MultiPruner",
    "NeuronPruning",
    "PruningPlan",
    "RandomPruning",
    "Removal",
    "SparsePlan",
    "SparsePruning",
    "count",
    "remove",
]
