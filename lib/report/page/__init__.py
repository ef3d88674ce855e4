"""The report as one page, report.html: tables, charts and the latent explorer, without a network.

Bokeh draws it: its figures share one source of points, so that a lasso or a box in one latent selects the same images
in the other, and its events reach a few lines of JavaScript, which show pictures out of one sheet of thumbnails.
Vega, behind Altair and `dvc plots`, has no lasso, and its tooltips show one picture by its address, not neighbors'.
"""
