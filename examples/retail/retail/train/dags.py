"""The pipeline `train`: who will buy in each department in the next four weeks?"""

from gluepy.exec import DAG, each
from retail.train.tasks import BuildFeatures, Evaluate, Fit, Report, Score, departments


class TrainDAG(DAG):
    label = "train"
    tasks = (
        BuildFeatures,
        each((Fit, Score), department=departments),
    )
    evaluation = (Evaluate, Report)
