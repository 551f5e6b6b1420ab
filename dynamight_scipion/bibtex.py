"""
@article{Schwab2024,
  title = {{DynaMight}: estimating molecular motions with improved reconstruction from cryo-{EM} images},
  author = {Schwab, Johannes and Kimanius, Dari and Burt, Alister and Dendooven, Tom and Scheres, Sjors H.W.},
  journal = {Nature Methods},
  volume = {21},
  number = {10},
  pages = {1855--1862},
  year = {2024},
  doi = {10.1038/s41592-024-02377-5},
  url = {https://doi.org/10.1038/s41592-024-02377-5}
}
"""
