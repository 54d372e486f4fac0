from . import loan_bike, order
