"""What leaves this repository: releases, model cards, exports."""
