from .page import FILE as FILE
from .page import page_html as page_html
from .page import write_page as write_page
from .results import Results as Results
from .results import read_results as read_results
