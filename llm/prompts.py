"""placeholder"""
BEFORE_AUDIO = "USER: <Speech>"
AFTER_AUDIO = "</Speech> {question}\nASSISTANT:"
