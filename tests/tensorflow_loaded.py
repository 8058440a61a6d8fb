"""What a process imports that others are forked from."""

from distill_jax.data import import_tf

import_tf.import_builder_and_tasks()
import_tf.import_text_tasks()
