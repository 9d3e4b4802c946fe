"""Distillation between Siamese trackers: agreement of positions, and of the relations between positions."""

from __future__ import annotations

from tutelage.errors import TutelageError
from tutelage.methods import NonNegative, method
from tutelage.methods.siamese_dlf.terms import PairWise, PointWise, Responses
from tutelage.models.tapped import Tapped
from tutelage.terms.term import Term, Weighted
from tutelage.training.learner import Learner
from tutelage.training.run import Run

TEMPLATE = "template"


@method(paper="Liu, Cao, Li, Xiao, Du, Zhu 2020 (ICPR)", family="representation", task="tracking", evidence="abstract")
def siamese_dlf(run: Run, *, point: NonNegative = 0.1, response: NonNegative = 0.1, pair: NonNegative = 0.5) -> Tapped:
    """DLF for Siamese trackers: a small tracker matches a larger one at each position and between positions.

        L = L_track + point (P(x) + P(z)) / 2 + response KL + pair R(x)

    x is the search crop and z the template, phi the last stage of the backbone, and a hat scales the channels at each
    position to length 1:

    - L_track: binary cross-entropy of the response with the place of the object, the sum of whose weights is 1/2 over
      the object's places and 1/2 over the others.
    - P: point-wise, the mean over positions of ||hat(a(phi_S)) - hat(phi_T)||^2, with a trained 1 x 1 convolution a of
      its own for x and for z, which is not part of the student.
    - KL: point-wise for responses, the mean over places of KL(sigma(r_T) || sigma(r_S)).
    - R: pair-wise, 1 / M^2 ||G_S - G_T||_F^2 of G = hat(phi)^T hat(phi), the cosines between all M positions, after
      max-pooling to at most 11 x 11 of them.

    A teacher of another stride has maps of another size, which are resized bilinearly. The teacher is trained by
    ``plain``.

    Args:
        run: the run.
        point: the weight of P [inferred]. The defaults of the three weights are those of our experiment; there P starts
            at a third of L_track and R at a twentieth. The weights of 1 and 10 that our reading suggested made a small
            tracker worse, or diverged.
        response: the weight of KL [inferred].
        pair: the weight of R [inferred].

    Reconstructed: the full paper could not be read. Its abstract names point-wise and pair-wise distillation; their
    equations here are those of the field (structured knowledge distillation for the pair-wise one), and so are the
    layers, the adapter and the resizing.

    Deviations: KL instead of the cross-entropy with the teacher's probabilities, which differs by a constant. The
    search crop shows the object off its middle by up to 1/16 of its side, and the places move with it; in
    siamfc-pytorch, they stay.
    """
    student, teacher = run.student(), run.teacher()
    role, teacher_role = run.paired_stages(student, teacher)[-1]
    for name, network in (("student", student), ("teacher", teacher)):
        if TEMPLATE not in run.trace(network).taps:
            raise TutelageError(
                f"the {name}, {type(network.module).__name__}, names no layer of the template's features; give a "
                'Siamese network such as siamese8, or name it: roles={"template": "layer"}'
            )
    terms: dict[str, Term | Weighted] = {
        **run.label_terms(),
        "point": point / 2 * PointWise(role, teacher_role),
        "point_template": point / 2 * PointWise(TEMPLATE, TEMPLATE),
        "response": response * Responses(),
        "pair": pair * PairWise(role, teacher_role),
    }
    run.fit(Learner(student, run.frozen(teacher), terms))
    return student
