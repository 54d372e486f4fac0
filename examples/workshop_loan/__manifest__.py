{
    "name": "Bicycle workshop: loan bicycles",
    "summary": "Lends a bicycle to a customer while theirs is repaired",
    "version": "19.0.1.0.0",
    "category": "Services",
    "author": "oCore",
    "license": "LGPL-3",
    "depends": ["workshop"],
    "data": [
        "security/ir.model.access.csv",
        "views/loan_bike_views.xml",
        "views/order_views.xml",
    ],
    "demo": ["demo/loan_bikes.xml"],
}
