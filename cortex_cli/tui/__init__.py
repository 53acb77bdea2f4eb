"""`cortex top`: pure view models, widgets that draw them, and the app. The only package that imports textual."""
