"""An artifact as something that others load: today an ordinary checkpoint of dense weights."""
