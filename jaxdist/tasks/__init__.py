"""What is learned: data, model, loss and accuracy together, ready for any algorithm."""

from jaxdist.tasks.base import Stream as Stream
from jaxdist.tasks.base import Task as Task
from jaxdist.tasks.digits import digits as digits
from jaxdist.tasks.images import images as images
from jaxdist.tasks.mnist import mnist as mnist
