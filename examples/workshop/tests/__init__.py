from . import test_order, test_pages
