"""Files between this machine and clouds: transfers, data sets staged here, runs mirrored there."""
