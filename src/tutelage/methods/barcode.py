"""Smart inference for barcodes: distil the reader, and choose how many digits the check digit may correct."""

from __future__ import annotations

from tutelage.data.ean13 import EAN13
from tutelage.evaluation.smart_inference import read
from tutelage.methods import Positive, Share, method
from tutelage.models.tapped import Tapped
from tutelage.tasks.barcode import CANDIDATES, outcomes
from tutelage.training.learner import Learner
from tutelage.training.run import Run


@method(paper="Do et al. 2020, arXiv 2004.06297", family="response", task="barcode", evidence="abstract")
def barcode(run: Run, *, temperature: Positive = 4.0, alpha: Share = 0.9) -> Tapped:
    """Barcode reader: Hinton's loss head by head, and smart inference with K chosen on held-out strings.

    L = (1/13) sum over d of (1 - alpha) CE(z_d, y_d) + alpha T^2 KL(softmax(v_d / T) || softmax(z_d / T)), with z_d the
    student's logits of digit d and v_d the teacher's on the same distorted picture. The students of this method and of
    ``hinton`` are equal. At inference the checksum corrects the K least certain digits: see
    ``tutelage.evaluation.smart_inference.read``. K is noted with the shares of right, false and no reads: of 0 to 6 the
    one with the largest share of right less that of false reads on the held-out strings, and of equals the smallest.
    The rule is no part of the network.

    Args:
        run: what to train. The teacher is trained by ``plain``, whose loss is the mean of the digits' cross-entropies.
        temperature: T [inferred].
        alpha: the weight of the soft targets [inferred].

    Deviations: the paper could not be read in full. That the big network is distilled is in its abstract, how is
    inferred. The paper trains on rendered and distorted barcodes, as ``--data barcodes`` is, and on photographs; we
    have none. That K is chosen by right less false reads is ours. Its test-time rotations are
    ``fast_track`` and ``full_voting`` beside ``read``, and not part of the metrics.
    """
    student = run.student()
    run.fit(Learner(student, run.frozen(*run.teachers()), run.label_terms(alpha, temperature)))
    part = run.data.validation
    if part is not None:
        logits = run.predict(student, part)
        found = {k: outcomes(read(logits, EAN13, k), part.labels) for k in CANDIDATES}
        chosen = max(found, key=lambda k: (found[k]["right"] or 0) - (found[k]["false"] or 0))
        run.note(smart_inference={"candidates": chosen, **found[chosen]})
    return student
