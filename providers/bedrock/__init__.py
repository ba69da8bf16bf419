"""The Bedrock dialect: Amazon Bedrock's Converse."""
