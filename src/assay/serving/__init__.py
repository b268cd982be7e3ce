"""A model behind the API that clients of OpenAI speak, with monitors that read every token while it is made."""
