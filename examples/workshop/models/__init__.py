from . import bike, order, service
