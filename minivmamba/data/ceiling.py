"""What a model can reach on "same or different" if it sees one digit at a time.

Let local features, averaged over the image, meet a linear layer: the score for "same" is
f(a) + f(b) for digits a and b, with any f whatever, and the answer is "same" if it reaches a
threshold t. Half of the pairs are equal, so guessing gives 50%. The best f gives more:

Call a class *high* if 2f ≥ t: its equal pairs are answered right. Two different high classes then
also reach t, wrongly, and that cannot be avoided; a high and a low class need not. With k of n
classes high, k/n of the equal pairs are right, and k(k − 1) of the n(n − 1) ordered different pairs
are wrong:

    accuracy = ½ · k/n + ½ · (1 − k(k − 1)/(n(n − 1))),     best at k = 5 of 10: 23/36 = 63.9%.

If the model can also tell *which place* a digit stands in (zero padding gives that away near the
edges), its score is f(a) + g(b), and f(a) = a, g(b) = −b answers every equal pair and half of the
others rightly: 75%. That is the most: f(a) + g(a) + f(b) + g(b) = f(a) + g(b) + f(b) + g(a), so
when a a and b b reach the threshold, one of a b and b a does.

The ceiling is one of additive evidence. A *non-linear* head behind the average can count ("is
there a class seen twice?") and solve the task without a global field. VMamba's head is linear.
"""

from fractions import Fraction
from itertools import product

from minivmamba.expect import expect_int


def local_evidence_ceiling(classes: int = 10, *, by_place: bool = False) -> Fraction:
    """The best accuracy of a thresholded sum of local evidence, by enumeration of all rules.

    Args:
        classes: number n of classes, 2…16 (there are 2ⁿ rules).
        by_place: whether the evidence of the two digits may count differently.

    Returns:
        An exact fraction: 23/36 for ten classes, 3/4 by place.

    Raises:
        ValueError: classes is out of range.
    """
    expect_int("classes", classes, minimum=2)
    if classes > 16:
        raise ValueError(f"classes: expected at most 16, got {classes}")
    if by_place:
        return max(_accuracy(k, k * (k - 1) // 2, classes) for k in range(classes + 1))
    return max(_accuracy(*_rule(word), classes) for word in product((0, 1), repeat=classes))


def _rule(word: tuple[int, ...]) -> tuple[int, int]:
    """Equal pairs answered rightly and different ordered pairs answered wrongly by one rule.

    Sort the classes by |f − t/2|, the largest first. A class against all later ones: if it is high,
    every such sum reaches t; if low, none does. So a rule is a word of high and low.
    """
    n = len(word)
    wrong = sum(2 * (n - 1 - place) for place, high in enumerate(word) if high)
    return sum(word), wrong


def _accuracy(right_same: int, wrong_different: int, n: int) -> Fraction:
    return (Fraction(right_same, n) + 1 - Fraction(wrong_different, n * (n - 1))) / 2
