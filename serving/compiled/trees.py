"""Forests and boosted trees: all trees of a model in one call of scikit-learn's own code, added up in its own order.

A hundred trees are a hundred calls from Python to scikit-learn, which cost far more than following the branches does.
Here they are one tree: in front of them are nodes that ask for one more column, the number of the tree, and each row
is given once for each tree, with that number. Where rows are many, copying them costs more than the calls do, so then
the trees are called one by one, without what scikit-learn does around them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.compiled.linear import by_logit, by_softmax, labelled
from serving.compiled.matrix import Matrix
from serving.compiled.refusals import AskNative, CannotCompile

FORESTS = (
    "RandomForestClassifier", "ExtraTreesClassifier", "DecisionTreeClassifier", "ExtraTreeClassifier",
    "RandomForestRegressor", "ExtraTreesRegressor", "DecisionTreeRegressor", "ExtraTreeRegressor",
)  # fmt: skip
BOOSTED = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")

Thresholds = NDArray[np.float64]
"""Of each inner node: the column that it asks for, and the largest value that goes to its left."""

_MOST_NODES = 400_000  # of all trees together: they are held twice
# Numbers of the rows, once, up to which copying them for each tree is cheaper than a call for each tree.
_FOREST_CELLS, _BOOSTED_CELLS = 4096, 2048
_LEAF = -1


class Forest:
    """Means of the trees' answers: the index of the label and the probabilities, or the values."""

    def __init__(self, estimator: Any, width: int, *, is_sparse: bool) -> None:
        """Raises CannotCompile."""
        members = getattr(estimator, "estimators_", [estimator])
        self._trees = [each.tree_ for each in members]
        self._has_classes = hasattr(estimator, "classes_")
        if any(each.tree_.n_features != width for each in members):
            raise CannotCompile(f"its trees are not of {width} columns")
        self._bears_gaps = not is_sparse and all(each.monotonic_cst is None for each in members)
        asked = [np.column_stack([tree.feature, tree.threshold])[tree.feature >= 0] for tree in self._trees]
        self.thresholds: Thresholds = np.concatenate(asked)
        self._joined = _JoinedForest(self._trees, width) if self._are_few() else None

    def __call__(self, matrix: Matrix) -> NDArray[np.float64]:
        """Raises AskNative for numbers beyond float32, and for gaps where its check forbids them."""
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(matrix, np.float32)
        if np.isinf(rows).any() or not (self._bears_gaps or np.isfinite(rows).all()):
            raise AskNative
        few = self._joined is not None and rows.size <= _FOREST_CELLS
        means = self._joined(rows) if self._joined is not None and few else _one_by_one(self._trees, rows)
        means /= len(self._trees)
        if not self._has_classes:
            return means
        return labelled(means.argmax(axis=1), means)  # as its own `predict` does

    def _are_few(self) -> bool:
        return sum(int(each.node_count) for each in self._trees) <= _MOST_NODES


class _JoinedForest:
    def __init__(self, trees: Sequence[Any], width: int) -> None:
        from sklearn.tree._tree import Tree  # only where there is such a model

        parts = [each.__getstate__()["nodes"] for each in trees]
        nodes, starts = _joined(parts, ("left_child", "right_child"), ("feature", "threshold"), width)
        values = [_values(each) for each in trees]
        self._width = values[0].shape[1]
        self._values = np.zeros((len(nodes), self._width))
        self._values[starts[0] :] = np.concatenate(values)
        self._tree = Tree(width + 1, np.array([1], np.intp), 1)
        self._tree.__setstate__(
            {"max_depth": 1, "node_count": len(nodes), "nodes": nodes, "values": np.zeros((len(nodes), 1, 1))}
        )
        self._numbers = np.arange(len(trees), dtype=np.float32)

    def __call__(self, rows: Matrix) -> Matrix:
        """Sums over the trees."""
        leaves = self._tree.apply(_for_each(rows, self._numbers))
        return _added(self._values.take(leaves, axis=0).reshape(len(self._numbers), len(rows), self._width))


class Boosted:
    """HistGradientBoosting: baseline and trees added up, then probabilities or values from that."""

    def __init__(self, estimator: Any, width: int) -> None:
        """Raises CannotCompile."""
        from sklearn.ensemble._hist_gradient_boosting._predictor import _predict_from_raw_data

        self._predict = _predict_from_raw_data
        trees = [tree for some in estimator._predictors for tree in some]
        parts = [each.nodes for each in trees]
        if estimator._preprocessor is not None or any(each["is_categorical"].any() for each in parts):
            raise CannotCompile("its categorical columns are not compiled")
        if estimator.n_features_in_ != width:
            raise CannotCompile(f"its trees are not of {width} columns")
        self._outputs = estimator.n_trees_per_iteration_
        self._baseline = estimator._baseline_prediction.reshape(1, self._outputs, 1)
        self._finish = _finish_of(estimator)
        self._parts = parts
        self._no_sets, self._columns = np.zeros((0, 8), np.uint32), np.zeros(width + 1, np.uint32)
        inner = [nodes[nodes["is_leaf"] == 0] for nodes in parts]
        asked = [np.column_stack([nodes["feature_idx"], nodes["num_threshold"]]) for nodes in inner]
        self.thresholds: Thresholds = np.concatenate(asked)
        self._numbers = np.arange(len(parts), dtype=np.float64)
        self._joined: Any = None
        if sum(map(len, parts)) <= _MOST_NODES:
            self._joined, _ = _joined(parts, ("left", "right"), ("feature_idx", "num_threshold"), width)

    def __call__(self, matrix: Matrix) -> NDArray[np.float64]:
        """Never refuses: whatever a float may be, it has a branch for."""
        rows = np.ascontiguousarray(matrix, np.float64)
        steps = len(self._parts) // self._outputs + 1
        grown = np.empty((steps, self._outputs, len(rows)))
        grown[0] = self._baseline[0]
        added = grown[1:].reshape(len(self._parts), len(rows))
        if self._joined is not None and rows.size <= _BOOSTED_CELLS:
            self._follow(self._joined, _for_each(rows, self._numbers), added.reshape(-1))
        else:
            for nodes, out in zip(self._parts, added, strict=True):
                self._follow(nodes, rows, out)
        return self._finish(_added(grown).T)

    def _follow(self, nodes: Any, rows: Matrix, out: Matrix) -> None:
        self._predict(nodes, rows, self._no_sets, self._no_sets, self._columns, 1, out)


def _finish_of(estimator: Any) -> Callable[[Matrix], NDArray[np.float64]]:
    """From rows by outputs to answers. Raises CannotCompile."""
    kind = type(estimator._loss).__name__
    if not hasattr(estimator, "classes_"):
        inverse = estimator._loss.link.inverse
        return lambda grown: np.asarray(inverse(grown.ravel()), np.float64).reshape(-1, 1)
    if kind == "HalfBinomialLoss":
        return lambda grown: by_logit(grown[:, 0] > 0, grown)
    if kind == "HalfMultinomialLoss":
        return lambda grown: by_softmax(grown.argmax(axis=1), grown)
    raise CannotCompile(f"probabilities by {kind} are not compiled")


def _joined(
    parts: Sequence[NDArray[Any]], children: tuple[str, str], question: tuple[str, str], column: int
) -> tuple[NDArray[Any], list[int]]:
    """One tree of several, and where each begins in it.

    Args:
        parts: nodes of each tree, its root first.
        children: fields of a node that name its left and right child.
        question: fields of a node that name its column and its threshold.
        column: where the number of the tree stands in a row.
    """
    inner = len(parts) - 1
    starts = np.cumsum([inner, *(len(each) for each in parts)]).tolist()
    nodes = np.zeros(starts[-1], parts[0].dtype)
    for part, start in zip(parts, starts, strict=False):
        some = nodes[start : start + len(part)]
        some[:] = part
        has_children = part["is_leaf"] == 0 if "is_leaf" in (part.dtype.names or ()) else part[children[0]] != _LEAF
        for side in children:
            some[side][has_children] += some[side].dtype.type(start)
    free = iter(range(inner))

    def split(first: int, last: int) -> int:
        """The node in front of the trees from `first` to before `last`."""
        if last - first == 1:
            return int(starts[first])
        node, middle = next(free), (first + last) // 2
        nodes[question[0]][node], nodes[question[1]][node] = column, middle - 0.5
        nodes[children[0]][node], nodes[children[1]][node] = split(first, middle), split(middle, last)
        return node

    split(0, len(parts))
    return nodes, starts


def _for_each(rows: Matrix, numbers: Matrix) -> Matrix:
    """All rows once for each tree, with the tree's number behind them."""
    copies = np.empty((len(numbers), rows.shape[0], rows.shape[1] + 1), rows.dtype)
    copies[:, :, :-1] = rows
    copies[:, :, -1] = numbers[:, None]
    return copies.reshape(-1, copies.shape[2])


def _values(tree: Any) -> Matrix:
    """Nodes by answers, as its `predict` gives them."""
    values: Matrix = tree.value
    return values[:, 0, :] if tree.n_outputs == 1 else values[:, :, 0]


def _one_by_one(trees: Sequence[Any], rows: Matrix) -> Matrix:
    """Sums over the trees."""
    total: Matrix = trees[0].predict(rows).reshape(len(rows), -1).copy()
    for tree in trees[1:]:
        total += tree.predict(rows).reshape(len(rows), -1)
    return total


def _added(parts: Matrix) -> Matrix:
    """The sum over the first axis, from its first to its last: another order would be rounded otherwise."""
    if parts[0].size == 1:  # numpy adds a single column up in pairs
        total: Matrix = np.add.accumulate(parts, axis=0)[-1]
        return total
    added: Matrix = np.add.reduce(parts, axis=0)
    return added
