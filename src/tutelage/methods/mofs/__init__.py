"""Fine-grained classification by features of first and second order."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tutelage.data.batch import hard_labels
from tutelage.errors import TutelageError
from tutelage.evaluation import accuracy
from tutelage.evaluation.json_numbers import json_number
from tutelage.methods import Positive, method
from tutelage.methods.mofs.loss import HeadsCrossEntropy
from tutelage.methods.mofs.surgery.mofs import apply as add_heads
from tutelage.methods.mofs.surgery.mofs import head_role
from tutelage.models.tapped import Tapped
from tutelage.training.learner import Learner
from tutelage.training.optim import ParameterOptions
from tutelage.training.run import Run

Size = Annotated[int, Field(ge=1)]


@method(paper="Wang, Zhang, Huang, Zhang, Fan 2020, ICPR", family="fine-grained", evidence="abstract")
def mofs(
    run: Run,
    *,
    channels: Size = 512,
    dimension: Annotated[int, Field(ge=2, le=1024)] = 256,
    iterations: Annotated[int, Field(ge=1, le=30)] = 5,
    orders: Literal["both", "first", "second"] = "both",
    network_lr: Positive = 1.0,
) -> Tapped:
    """Multi-order features (MOFS): heads for the means and for the covariance of feature maps.

        L = sum over heads s of CE(z_s, y);   prediction: the mean over heads of softmax(z_s)
        v_mid  = max over positions of F(X_mid),   v_high = mean over positions of F(X_high)
        v_cov  = upper triangle of sqrt(S),   S = 1/M sum_m (x_m - mean) (x_m - mean)^T,   x = ReLU(BN(conv1x1(X_high)))
        z_all  = linear layer on [v_mid; v_high; v_cov]

    X_high is the last stage's map and X_mid that of the stage before; a network with one stage has no head for X_mid.
    F is a 1x1 convolution, then a 3x3 convolution to twice the channels, each with batch normalisation and ReLU. The
    square root is computed by T Newton-Schulz iterations, in float32 also under bfloat16. The heads on v_mid and v_high
    are Linear, batch normalisation, ELU, Linear; that on v_cov is linear. Each head trains the whole network below it.
    The heads replace the classifier and are saved with the student. The notes in ``result.json`` hold the accuracy of
    each head on the held-out split.

    Args:
        run: the run; a teacher is not used.
        channels: of the first convolution of F, at most those of the map.
        dimension: D, the channels of x, at most those of the map. The covariance has D (D + 1) / 2 numbers, and its
            head so many weights for each class.
        iterations: T.
        orders: "first" has the heads on v_mid and v_high only, "second" the one on v_cov only.
        network_lr: a factor on the learning rate of the network's own layers. The paper's is 0.1 [inferred], for a
            pretrained network.

    Evidence: the paper could not be read. Its abstract says that there is a first-order module on features of middle
    and high level, and a covariance module. The covariance and its root are those of the public iSQRT-COV code
    (Li et al. 2018); T = 5 is [from memory]. All layers, sizes, the weights of the losses (1) and the mean of
    probabilities are [inferred].

    Deviations: the paper fine-tunes a ResNet-50 of ImageNet on images of 448 x 448; here any student is trained, a
    pretrained one if the run says so.
    """
    if run.recipe.batch_size < 2:
        raise TutelageError("the heads of MOFS normalise over the batch; use a batch size of 2 or more")
    student = run.trace(run.student())
    if not student.stages:
        raise TutelageError(
            f"MOFS pools feature maps, and {type(student.module).__name__} has none; name a layer that has, for "
            'example roles={"stage1": "layer1"}'
        )
    layers = [str(student.taps[stage]) for stage in reversed(student.stages[-2:])]
    network = add_heads(
        student.module,
        run.example(student),
        layers=layers,
        channels=channels,
        dimension=dimension,
        iterations=iterations,
        orders=orders,
    )
    whole = Tapped(network, student.mean.flatten().tolist(), student.std.flatten().tolist())
    heads = [head_role(name) for name in network.classifiers]
    own = ParameterOptions(lr=network_lr)
    options = (lambda name: own if name.startswith("network.") else None) if network_lr != 1 else None
    run.fit(Learner(whole, None, {"ce": HeadsCrossEntropy(heads)}, options=options))
    held_out = run.data.validation
    if held_out is not None:
        logits = run.predict(whole, held_out, heads).view(len(held_out), len(heads), -1)
        labels = hard_labels(held_out.labels)
        run.note(held_out_accuracy={h: json_number(accuracy(logits[:, n], labels)) for n, h in enumerate(heads)})
    return whole
